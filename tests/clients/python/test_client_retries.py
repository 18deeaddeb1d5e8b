"""Requests of the synchronous client that are sent again, and are carried out once."""

from __future__ import annotations

import time
from typing import Any

import pytest
from palimpsest import ApiError, Client, GenerationStarted, RateLimited, Unavailable

from tests.clients.python.script import Failure


def test_an_append_is_repeated_with_the_same_operation_after_503(client: Client, script: Any) -> None:
    session = client.sessions.create()
    script.failures.extend([Failure("append"), Failure("append", code="store_unavailable")])
    assert session.append("once").position == 4
    sent = [op_id for verb, op_id in script.requests if verb == "append"]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert sent[0]


def test_retries_end(client: Client, script: Any) -> None:
    session = client.sessions.create()
    script.failures.extend([Failure("append")] * 3)
    with pytest.raises(Unavailable, match="scripted"):
        session.append("once")
    assert script.texts[session.id] == ""


def test_an_append_applied_behind_a_broken_connection_is_applied_once(client: Client, script: Any) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("append", drop=True))
    assert session.append("once").position == 4
    assert script.texts[session.id] == "once"
    assert len([verb for verb, _ in script.requests if verb == "append"]) == 2


def test_two_appends_of_the_same_text_are_two(client: Client, script: Any) -> None:
    session = client.sessions.create()
    session.append("ha")
    session.append("ha")
    assert script.texts[session.id] == "haha"


def test_retry_after_is_waited_for(client: Client, script: Any) -> None:
    script.failures.append(Failure("version", headers={"retry-after": "0.7"}))
    began = time.monotonic()
    client.version()
    assert time.monotonic() - began >= 0.7


def test_a_retry_after_beyond_patience_is_raised_at_once(client: Client, script: Any) -> None:
    script.failures.append(Failure("version", status=429, headers={"retry-after": "3600"}))
    with pytest.raises(RateLimited) as caught:
        client.version()
    assert caught.value.retry_after == 3600


@pytest.mark.parametrize(
    ("code", "status", "tries"),
    [
        ("draining", 503, 2),
        ("overloaded", 503, 2),
        ("session_busy", 409, 2),
        ("worker_lost", 503, 2),
        ("internal_error", 500, 2),
        ("quota_exceeded", 429, 2),
        ("precondition_failed", 412, 1),
        ("op_id_reused", 422, 1),
    ],
)
def test_a_generation_is_repeated_as_the_same_operation(
    client: Client, script: Any, code: str, status: int, tries: int
) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("generate", status=status, code=code))
    if tries == 1:
        with pytest.raises(ApiError):
            session.generate("x")
    else:
        session.generate("x")
    sent = [op_id for verb, op_id in script.requests if verb == "generate"]
    assert len(sent) == tries
    assert len(set(sent)) == 1
    assert sent[0]


@pytest.mark.parametrize(("code", "status"), [("quota_exceeded", 429), ("overloaded", 503)])
def test_what_was_refused_before_it_began_is_repeated_in_any_case(
    client: Client, script: Any, code: str, status: int
) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("delete", status=status, code=code))
    client.sessions.delete(session.id)
    assert [verb for verb, _ in script.requests].count("delete") == 2


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_what_carries_no_operation_is_not_repeated_after_it_may_have_been_done(
    client: Client, script: Any, verb: str
) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("patch" if verb == "update" else verb, code="worker_lost"))
    with pytest.raises(Unavailable):
        client.sessions.delete(session.id) if verb == "delete" else client.sessions.update(session.id, metadata={})
    assert len(script.requests) == 2


def test_what_was_done_behind_a_broken_connection_is_done_once(client: Client, script: Any) -> None:
    script.failures.extend([Failure("create", drop=True), Failure("generate", drop=True)])
    session = client.sessions.create(system="Be brief.")
    assert session.generate("x").text == "echo: x "
    assert len(script.generations) == 1
    script.failures.append(Failure("fork", drop=True))
    child = session.fork()
    script.failures.append(Failure("import", drop=True))
    made = client.import_session(session.export())
    assert list(script.sessions) == [session.id, child.id, made.id]
    assert list(script.texts.values()) == ["system: Be brief.x"] * 3


def test_the_callers_operation_is_sent(client: Client, script: Any) -> None:
    session = client.sessions.create(op_id="op_1")
    assert client.sessions.create(op_id="op_1").id == session.id
    assert session.generate("x", op_id="op_2") == session.generate("x", op_id="op_2")
    assert next(session.stream("x", op_id="op_2")) == GenerationStarted("gen_1")
    assert session.fork(op_id="op_3").id == session.fork(op_id="op_3").id
    packed = session.export()
    assert client.import_session(packed, op_id="op_4").id == client.import_session(packed, op_id="op_4").id
    assert len(script.generations) == 1
