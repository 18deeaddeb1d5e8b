"""Requests of the synchronous client: verbs, retries, exactly-once, errors."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from palimpsest import (
    ApiError,
    Client,
    Conflict,
    ConnectionFailed,
    GenerationStarted,
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

from tests.clients.python.script import Failure


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_a_session_is_made_listed_changed_and_deleted(client: Client, script: Any) -> None:
    session = client.sessions.create(system="Be brief.", metadata={"name": "moby"})
    assert session.info.name == "moby"
    assert session.info.position == len("system: Be brief.")
    assert session.info.etag == f'"1-{len("system: Be brief.")}"'
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
    [model] = client.models()
    assert (model.id, model.memory) == ("echo", "slots")
    assert [(offered.memory, offered.state_bytes) for offered in model.memories] == [("slots", 64), ("window", 32)]
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
        ("unavailable", 429, 2),
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


def test_a_fork_has_the_memory_and_a_future_of_its_own(client: Client, script: Any) -> None:
    session = client.sessions.create(metadata={"name": "moby"})
    session.append("Call me")
    child = session.fork()
    other = session.fork(metadata={"name": "dick"})
    assert (child.info.name, other.info.name, child.info.position) == ("moby", "dick", 7)
    child.append("!")
    assert (session.refresh().position, child.refresh().position) == (7, 8)


def test_an_export_comes_back_as_another_session(client: Client, script: Any, tmp_path: Path) -> None:
    session = client.sessions.create(metadata={"name": "größer"})
    session.append("ä" * 100_000)
    file = tmp_path / "session.palimpsest"
    file.write_bytes(b"old")
    session.export_to(file)
    assert file.read_bytes() == session.export()
    for source in (file, str(file), file.read_bytes()):
        made = client.import_session(source, ttl_seconds=60)
        assert (made.info.name, made.info.position) == ("größer", 100_000)
        assert script.sessions[made.id]["ttl"] == "60"


def test_an_export_that_breaks_off_begins_again_or_leaves_the_file(client: Client, script: Any, tmp_path: Path) -> None:
    session = client.sessions.create()
    session.append("whale")
    file = tmp_path / "session.palimpsest"
    script.failures.append(Failure("export", drop=True))
    session.export_to(file)
    whole = file.read_bytes()
    script.failures.extend([Failure("export", drop=True)] * 3)
    with pytest.raises(ConnectionFailed):
        session.export_to(file)
    assert file.read_bytes() == whole == session.export()
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        session.export_to(tmp_path / "nowhere" / "session")


def test_an_import_that_is_none(client: Client, script: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        client.import_session(b"nonsense")
    with pytest.raises(FileNotFoundError):
        client.import_session(tmp_path / "missing")
    assert not script.sessions


def test_a_stale_etag_is_refused_by_whatever_changes_the_session(client: Client, script: Any) -> None:
    session = client.sessions.create()
    stale = session.info.etag
    fresh = session.append("x", if_match=stale).etag
    assert fresh
    assert fresh != stale
    changes: list[Callable[[str | None], object]] = [
        lambda etag: session.append("y", if_match=etag),
        lambda etag: session.append_stream(["y"], if_match=etag),
        lambda etag: session.generate("y", if_match=etag),
        lambda etag: list(session.stream("y", if_match=etag)),
        lambda etag: session.fork(if_match=etag),
        lambda etag: client.sessions.update(session.id, metadata={}, if_match=etag),
        lambda etag: client.sessions.delete(session.id, if_match=etag),
    ]
    for change in changes:
        with pytest.raises(PreconditionFailed):
            change(stale)
    assert script.texts[session.id] == "x"
    after = session.generate("z", if_match=fresh.strip('"')).etag
    assert session.refresh().etag == after != fresh
    session.append("w", if_match="*")
    client.sessions.delete(session.id, if_match=session.refresh().etag)
    assert not script.sessions


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
def test_statuses_have_classes(server: Any, script: Any, status: int, kind: type[ApiError]) -> None:
    script.failures.append(Failure("version", status=status, code="c"))
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


def test_a_file_is_streamed_and_sent_again_from_where_it_stood(client: Client, script: Any) -> None:
    session = client.sessions.create()
    text = "ä🐋\r\n" * 30_000
    file = io.BytesIO(b"skip" + text.encode())
    file.seek(4)
    script.failures.append(Failure("append"))
    assert session.append_stream(file).tokens == len(text)
    assert script.texts[session.id] == text


@pytest.mark.parametrize("source", [["a", "", "ü"], [b"a", "ü".encode()], "aü", io.StringIO("aü")])
def test_what_append_stream_takes(client: Client, script: Any, source: Any) -> None:
    session = client.sessions.create()
    session.append_stream(source)
    assert script.texts[session.id] == "aü"


def test_an_iterator_is_sent_once_only(client: Client, script: Any) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("append"))
    with pytest.raises(Unavailable):
        session.append_stream(iter(["a", "b"]))
    assert len([verb for verb, _ in script.requests if verb == "append"]) == 1


def test_append_stream_refuses_what_is_not_text(client: Client, script: Any) -> None:
    session = client.sessions.create()
    wrong: Any = 5
    with pytest.raises(TypeError, match="not int"):
        session.append_stream(wrong)
