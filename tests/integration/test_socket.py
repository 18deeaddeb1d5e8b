"""The verbs of a session over a WebSocket."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from palimpsest import Client, Conflict
from palimpsest.records import Encoding
from palimpsest.session import SessionHandle
from websockets.sync.client import connect

from bench.server_process import ServerProcess, wait_until
from tests.integration.continuing import assert_alike, greedy
from tests.integration.texts import plain_text

LONG = {"max_tokens": 300, "temperature": 0.0}


def socket_url(server: ServerProcess, session: SessionHandle) -> str:
    return f"{server.url.replace('http', 'ws', 1)}/v1/sessions/{session.id}/stream"


def is_free(session: SessionHandle) -> bool:
    try:
        session.append(" kelo")
    except Conflict:
        return False
    return True


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_the_verbs_do_what_they_do_over_http(encoding: Encoding, client: Client) -> None:
    session, reference = client.sessions.create(), client.sessions.create()
    reference.append(plain_text(1, 50))
    expected = reference.generate(max_tokens=15, temperature=0)
    with session.connect(encoding) as socket:
        assert socket.session is not None
        assert socket.session.id == session.id
        socket.ping()
        appended = socket.append(plain_text(1, 50), op_id="one")
        assert appended == socket.append(plain_text(1, 50), op_id="one")
        generation = socket.generate(max_tokens=15, temperature=0)
        text = "".join(delta.text for delta in generation)
    assert generation.result is not None
    assert text == generation.result.text == expected.text
    assert generation.result.position == expected.position
    assert_alike(session, reference)


def test_appends_wait_for_the_generation_before_them(server: ServerProcess, client: Client, opening: str) -> None:
    session = client.sessions.create()
    sent: list[dict[str, Any]] = [
        {"type": "append", "op_id": "zero", "text": opening},
        {"type": "generate", "max_tokens": 40, "temperature": 0},
        {"type": "append", "op_id": "one", "text": plain_text(1, 10)},
        {"type": "append", "op_id": "two", "messages": [{"role": "user", "content": "kelo"}]},
        {"type": "ping"},
    ]
    records: list[dict[str, Any]] = []
    with connect(socket_url(server, session), proxy=None) as socket:
        for record in sent:
            socket.send(json.dumps(record))
        while [record.get("op_id") for record in records[-1:]] != ["two"]:
            records.append(json.loads(socket.recv(20)))
    kinds = [record["type"] for record in records if record["type"] not in ("generation.delta", "pong")]
    assert kinds == [
        "session.ready",
        "append.completed",
        "generation.started",
        "generation.completed",
        "append.completed",
        "append.completed",
    ]
    assert records[-2]["op_id"] == "one"
    generated = next(record["generation"]["position"] for record in records if "generation" in record)
    assert generated < records[-2]["position"] < records[-1]["position"] == session.refresh().position


def test_cancelling_stops_soon_and_keeps_what_was_sampled(client: Client, opening: str) -> None:
    session, reference = client.sessions.create(), client.sessions.create()
    begin = session.append(opening).position
    reference.append(opening)
    with session.connect() as socket:
        generation = socket.generate(**LONG)  # type: ignore[arg-type]
        for _, _delta in zip(range(5), generation, strict=False):
            pass
        asked = time.monotonic()
        generation.cancel()
        rest = len(list(generation))
        assert time.monotonic() - asked < 3
        assert generation.result is not None
        assert generation.result.finish_reason == "cancelled"
        sampled = generation.result.usage.completion_tokens
        assert 5 <= sampled < 300
        assert rest < 295
        assert generation.result.position == session.refresh().position == begin + sampled
        greedy(reference, sampled)
        socket.append(plain_text(1, 5))
    reference.append(plain_text(1, 5))
    assert_alike(session, reference)


@pytest.mark.parametrize("way", ["socket", "events"])
def test_going_away_cancels(way: str, client: Client, opening: str) -> None:
    session = client.sessions.create()
    begin = session.append(opening).position
    if way == "socket":
        with session.connect() as socket:
            next(socket.generate(**LONG))  # type: ignore[arg-type]
    else:
        with session.stream(**LONG) as events:  # type: ignore[arg-type]
            for _, _event in zip(range(4), events, strict=False):
                pass
    wait_until(lambda: is_free(session), "the generation has ended", 5)
    assert begin < session.refresh().position < begin + 290


def test_a_generation_that_was_left_before_it_began_takes_nothing(client: Client, server: ServerProcess) -> None:
    session, reference = client.sessions.create(), client.sessions.create()
    for each in (session, reference):
        each.append(plain_text(7, 50))
    with connect(socket_url(server, session), proxy=None) as socket:
        socket.send(json.dumps({"type": "generate", "max_tokens": 2000, "temperature": 0, "remember": False}))
    wait_until(lambda: is_free(session), "the session is free", 5)
    is_free(reference)
    assert_alike(session, reference)
