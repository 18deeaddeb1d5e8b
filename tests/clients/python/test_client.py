"""Verbs of the synchronous client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from palimpsest import Client, NotFound, PreconditionFailed


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


def test_a_fork_has_the_memory_and_a_future_of_its_own(client: Client, script: Any) -> None:
    session = client.sessions.create(metadata={"name": "moby"})
    session.append("Call me")
    child = session.fork()
    other = session.fork(metadata={"name": "dick"})
    assert (child.info.name, other.info.name, child.info.position) == ("moby", "dick", 7)
    child.append("!")
    assert (session.refresh().position, child.refresh().position) == (7, 8)


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
