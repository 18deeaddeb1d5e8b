"""Requests of the synchronous client: verbs, retries, exactly-once, errors."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from palimpsest import (
    ApiError,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RateLimited,
    ServerFault,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_a_session_is_made_listed_changed_and_deleted(client: Client, script: Any) -> None:
    session = client.sessions.create(system="Be brief.", metadata={"name": "moby"})
    assert session.info.name == "moby"
    assert session.info.position == len("system: Be brief.")
    assert session.info.etag == '"1"'
    assert client.sessions.get(session.id).info == session.info
    assert [found.id for found in client.sessions.list().data] == [session.id]
    changed = client.sessions.update(session.id, metadata={"name": "dick"}, if_match=session.info.etag)
    assert changed.name == "dick"
    with pytest.raises(PreconditionFailed):
        client.sessions.update(session.id, metadata={}, if_match=session.info.etag)
    client.sessions.delete(session.id)
    with pytest.raises(NotFound) as caught:
        client.sessions.get(session.id)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (404, "not_found", "req_1")


def test_all_goes_through_every_page_once(client: Client, script: Any) -> None:
    made = [script.add()["id"] for _ in range(205)]
    assert [session.id for session in client.sessions.all()] == made[::-1]


def test_append_and_generate(client: Client, script: Any) -> None:
    session = client.sessions.create()
    segment = session.append("Call me ", op_id="op_a")
    assert (segment.tokens, segment.position, segment.op_id) == (8, 8, "op_a")
    assert session.append(messages=[{"role": "user", "content": "x"}]).position == 15
    answer = session.generate("who?", max_tokens=5, temperature=0.0, stop=("\n",), remember=False)
    assert answer.text == "echo: who? "
    assert answer.usage.context_tokens == 3
    assert script.generations == [
        {
            "prompt": "who?",
            "max_tokens": 5,
            "temperature": 0.0,
            "stop": ["\n"],
            "remember": False,
            "stream": False,
        }
    ]
    assert session.refresh().position == 15


def test_memory_models_ready_version(client: Client, script: Any) -> None:
    memory = client.sessions.create().memory()
    assert memory.layers[0].kv_heads == (0, 2)
    assert memory.remembered[0].text == "whale"
    assert [model.id for model in client.models()] == ["echo"]
    assert client.version() == {"version": "0.1.0"}
    assert client.ready()
    script.is_ready = False
    assert not client.ready()


def test_text_and_messages_exclude_each_other(client: Client, script: Any) -> None:
    session = client.sessions.create()
    with pytest.raises(ValueError, match="not both"):
        session.append("a", messages=[])
    with pytest.raises(ValueError, match="give text or messages"):
        session.append()
    assert script.texts[session.id] == ""


def test_an_append_is_repeated_with_the_same_operation_after_503(client: Client, script: Any, failure: Any) -> None:
    session = client.sessions.create()
    script.failures.extend([failure("append"), failure("append", code="store_unavailable")])
    assert session.append("once").position == 4
    sent = [op_id for verb, op_id in script.requests if verb == "append"]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert sent[0]


def test_retries_end(client: Client, script: Any, failure: Any) -> None:
    session = client.sessions.create()
    script.failures.extend([failure("append")] * 3)
    with pytest.raises(Unavailable, match="scripted"):
        session.append("once")
    assert script.texts[session.id] == ""


def test_an_append_applied_behind_a_broken_connection_is_applied_once(
    client: Client, script: Any, failure: Any
) -> None:
    session = client.sessions.create()
    script.failures.append(failure("append", drop=True))
    assert session.append("once").position == 4
    assert script.texts[session.id] == "once"
    assert len([verb for verb, _ in script.requests if verb == "append"]) == 2


def test_two_appends_of_the_same_text_are_two(client: Client, script: Any) -> None:
    session = client.sessions.create()
    session.append("ha")
    session.append("ha")
    assert script.texts[session.id] == "haha"


def test_retry_after_is_waited_for(client: Client, script: Any, failure: Any) -> None:
    script.failures.append(failure("version", headers={"retry-after": "0.7"}))
    began = time.monotonic()
    client.version()
    assert time.monotonic() - began >= 0.7


def test_a_retry_after_beyond_patience_is_raised_at_once(client: Client, script: Any, failure: Any) -> None:
    script.failures.append(failure("version", status=429, headers={"retry-after": "3600"}))
    with pytest.raises(RateLimited) as caught:
        client.version()
    assert caught.value.retry_after == 3600


@pytest.mark.parametrize(
    ("code", "status", "tries"),
    [
        ("draining", 503, 2),
        ("overloaded", 503, 2),
        ("session_busy", 409, 2),
        ("worker_lost", 503, 1),
        ("internal_error", 500, 1),
        ("unavailable", 429, 1),
    ],
)
def test_a_generation_is_repeated_only_if_it_was_not_begun(
    client: Client, script: Any, failure: Any, code: str, status: int, tries: int
) -> None:
    session = client.sessions.create()
    script.failures.append(failure("generate", status=status, code=code))
    if tries == 1:
        with pytest.raises(ApiError):
            session.generate("x")
    else:
        session.generate("x")
    assert len([verb for verb, _ in script.requests if verb == "generate"]) == tries


def test_a_generation_whose_answer_breaks_off_is_not_repeated(client: Client, script: Any, failure: Any) -> None:
    session = client.sessions.create()
    script.failures.append(failure("generate", drop=True))
    with pytest.raises(ConnectionFailed) as caught:
        session.generate("x")
    assert not caught.value.refused
    assert len(script.generations) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthenticated),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, ServerFault),
        (503, Unavailable),
        (599, ServerFault),
    ],
)
def test_statuses_have_classes(server: Any, script: Any, failure: Any, status: int, kind: type[ApiError]) -> None:
    script.failures.append(failure("version", status=status, code="c"))
    with Client(server.url, retries=0) as client, pytest.raises(ApiError) as caught:
        client.version()
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "c")


def test_the_key_is_sent(server: Any, script: Any) -> None:
    script.api_key = "secret"
    with Client(server.url, api_key="secret") as client:
        client.version()
    with Client(server.url) as client, pytest.raises(Unauthenticated):
        client.version()


def test_nobody_listening_is_a_refused_connection() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with (
            Client(url, retries=1) as client,
            pytest.raises(ConnectionFailed, match="cannot connect") as caught,
        ):
            client.sessions.create()
    assert caught.value.refused


def test_an_answer_that_is_not_ours_says_so(server: Any) -> None:
    with Client(f"{server.url}/elsewhere") as client, pytest.raises(UnexpectedAnswer, match="Palimpsest"):
        client.version()


def test_a_file_is_streamed_and_sent_again_from_where_it_stood(client: Client, script: Any, failure: Any) -> None:
    session = client.sessions.create()
    text = "ä🐋\r\n" * 30_000
    file = io.BytesIO(b"skip" + text.encode())
    file.seek(4)
    script.failures.append(failure("append"))
    assert session.append_stream(file).tokens == len(text)
    assert script.texts[session.id] == text


@pytest.mark.parametrize("source", [["a", "", "ü"], [b"a", "ü".encode()], "aü", io.StringIO("aü")])
def test_what_append_stream_takes(client: Client, script: Any, source: Any) -> None:
    session = client.sessions.create()
    session.append_stream(source)
    assert script.texts[session.id] == "aü"


def test_an_iterator_is_sent_once_only(client: Client, script: Any, failure: Any) -> None:
    session = client.sessions.create()
    script.failures.append(failure("append"))
    with pytest.raises(Unavailable):
        session.append_stream(iter(["a", "b"]))
    assert len([verb for verb, _ in script.requests if verb == "append"]) == 1


def test_append_stream_refuses_what_is_not_text(client: Client, script: Any) -> None:
    session = client.sessions.create()
    wrong: Any = 5
    with pytest.raises(TypeError, match="not int"):
        session.append_stream(wrong)
