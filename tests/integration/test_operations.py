"""Operation ids, and the end of sessions."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from palimpsest import Client, Conflict, InvalidRequest, NotFound, PalimpsestError
from palimpsest.session import SessionHandle

from bench.server_process import ServerProcess, wait_until
from tests.integration.continuing import assert_alike
from tests.integration.texts import plain_text


def test_a_repeated_operation_is_applied_once(client: Client, session: SessionHandle) -> None:
    first = session.append(plain_text(1, 30), op_id="one")
    session.append(plain_text(2, 30))
    position = session.refresh().position
    assert session.append(plain_text(1, 30), op_id="one") == first
    assert session.refresh().position == position
    reference = client.sessions.create()
    reference.append(plain_text(1, 30) + plain_text(2, 30))
    assert_alike(session, reference)


def test_another_body_under_the_same_id_is_refused(session: SessionHandle) -> None:
    position = session.append("kelo rati", op_id="one").position
    with pytest.raises(InvalidRequest) as raised:
        session.append("kelo nura", op_id="one")
    assert (raised.value.status, raised.value.code) == (422, "op_id_reused")
    assert session.refresh().position == position


def test_a_repeated_stream_is_applied_once(session: SessionHandle) -> None:
    text = plain_text(3, 8000)  # more than one piece
    first = session.append_stream(iter([text[:20_000]]), op_id="s")
    position = session.append_stream(iter([text]), op_id="t").position
    assert session.append_stream(iter([text[:20_000]]), op_id="s") == first
    assert session.append_stream(iter([text]), op_id="t").position == position == session.refresh().position


def test_of_many_duplicates_at_once_one_is_applied(client: Client, session: SessionHandle) -> None:
    session.append(plain_text(4, 30))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: session.append(plain_text(5, 30), op_id="same"), range(8)))
    assert len(set(answers)) == 1
    reference = client.sessions.create()
    reference.append(plain_text(4, 30) + plain_text(5, 30))
    assert_alike(session, reference)


def test_a_generating_session_is_busy(session: SessionHandle, opening: str) -> None:
    session.append(opening)
    with session.stream(max_tokens=300, temperature=0) as events:
        for _, _event in zip(range(2), events, strict=False):
            pass
        for work in (
            lambda: session.append("x"),
            lambda: session.generate("x"),
            lambda: session.generate(remember=False),
        ):
            with pytest.raises(Conflict) as raised:
                work()
            assert raised.value.retry_after is not None


def test_deleting_ends_what_runs(client: Client, server: ServerProcess, opening: str) -> None:
    session = client.sessions.create()
    session.append(opening)
    with session.stream(max_tokens=300, temperature=0) as events:
        next(events)
        client.sessions.delete(session.id)
        with pytest.raises(NotFound):
            list(events)
    for gone in (session.refresh, session.memory, lambda: session.append("x"), lambda: session.generate("x")):
        with pytest.raises(NotFound):
            gone()
    assert not list(server.data_dir.glob(f"snapshots/{session.id}*"))
    assert client.sessions.create().append(opening).position > 0


def test_deleting_amid_many_requests_leaves_none_waiting(client: Client) -> None:
    session = client.sessions.create()

    def work(number: int) -> bool:
        try:
            if number % 3:
                session.append(plain_text(number, 300))
            else:
                session.generate("kelo", max_tokens=50, remember=number % 2 == 0)
        except (NotFound, Conflict):
            return True
        except PalimpsestError as error:
            raise AssertionError(f"{error!r} of a session that was deleted") from error
        return False

    with ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(work, number) for number in range(12)]
        time.sleep(0.3)
        client.sessions.delete(session.id)
        for answer in answers:
            answer.result(20)
    assert client.sessions.create().append("kelo").position > 0


def test_a_session_lives_as_long_as_it_was_given(client: Client) -> None:
    session, lasting = client.sessions.create(ttl_seconds=1), client.sessions.create()
    session.append("kelo rati nura")

    def is_gone() -> bool:
        try:
            session.refresh()
        except NotFound:
            return True
        return False

    wait_until(is_gone, "it has expired", 5)
    with pytest.raises(NotFound):
        session.append("more")
    assert lasting.append("more").position > 0
