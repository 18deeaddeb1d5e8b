"""`remember=False` asks without leaving a trace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from palimpsest import Client, InvalidRequest
from palimpsest.session import SessionHandle

from bench.server_process import ServerProcess
from tests.integration.continuing import assert_alike, greedy
from tests.integration.stored import settled_session
from tests.integration.texts import plain_text


@pytest.mark.parametrize("room", ["server", "narrow"])
def test_an_unremembered_question_leaves_the_bytes_as_they_are(room: str, request: pytest.FixtureRequest) -> None:
    server: ServerProcess = request.getfixturevalue(room)
    with server.client() as client:
        session, never_asked = client.sessions.create(), client.sessions.create()
        for each in (session, never_asked):
            each.append(plain_text(1, 100))
        before, stored = session.refresh(), settled_session(server.data_dir, session.id)
        answer = session.generate("kelo rati?", max_tokens=40, remember=False)
        assert answer.text
        after = settled_session(server.data_dir, session.id)
        assert session.refresh() == before
        assert (after.snapshot, after.tail, after.record) == (stored.snapshot, stored.tail, stored.record)
        for each in (session, never_asked):
            each.append(plain_text(2, 100))
        found = settled_session(server.data_dir, session.id).snapshot
        assert found == settled_session(server.data_dir, never_asked.id).snapshot
        assert_alike(session, never_asked)


def test_it_answers_as_a_remembered_one_would(client: Client) -> None:
    session = client.sessions.create()
    session.append(plain_text(3, 80))

    before = session.refresh().position
    unremembered = session.generate("seti?", max_tokens=20, temperature=0, remember=False)
    assert unremembered.position == session.refresh().position == before
    remembered = session.generate("seti?", max_tokens=20, temperature=0)
    assert (unremembered.text, unremembered.usage) == (remembered.text, remembered.usage)
    assert session.refresh().position == remembered.position


def test_others_at_work_do_not_matter(client: Client) -> None:
    session, reference, busy = client.sessions.create(), client.sessions.create(), client.sessions.create()
    for each in (session, reference, busy):
        each.append(plain_text(4, 80))
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(busy.append, plain_text(5, 2000))
        answers = [greedy(session, 15, remember=False) for _ in range(3)]
        reading.result()
    assert [[token.token_id for token in answer] for answer in answers] == [
        [token.token_id for token in greedy(reference, 15, remember=False)]
    ] * 3
    assert_alike(session, reference)


def test_an_empty_session_has_nothing_to_go_on_from(client: Client) -> None:
    session = client.sessions.create()
    for remember in (True, False):
        with pytest.raises(InvalidRequest, match="append text first") as raised:
            session.generate(remember=remember)
        assert raised.value.status == 422
    assert session.generate("kelo", max_tokens=3, remember=False).usage.completion_tokens
    assert session.refresh().position == 0
    assert session.generate("kelo", max_tokens=3).position == session.refresh().position > 0


def test_sessions_that_share_one_place_are_all_answered(narrow: ServerProcess) -> None:
    with narrow.client() as client:
        sessions = [client.sessions.create() for _ in range(4)]
        for number, session in enumerate(sessions):
            session.append(plain_text(number, 30))
        begin = [session.refresh().position for session in sessions]

        def ask(session: SessionHandle) -> int:
            return len(greedy(session, 5, remember=False))

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(ask, sessions * 3))
        assert [session.refresh().position for session in sessions] == begin
