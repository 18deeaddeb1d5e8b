from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.errors import SessionBusy
from server.messages import Generate
from server.store.base import Store
from tests.server.scripted import OTHERS, RunningServer, ScriptedPool, offering, record_generation

JSON, MSGPACK = "palimpsest.v1+json", "palimpsest.v1+msgpack"


class Talk:
    """A connection that speaks records in either subprotocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.packed = socket.subprotocol == MSGPACK

    async def send(self, **record: Any) -> None:
        await self.socket.send(msgpack.packb(record) if self.packed else json.dumps(record))

    async def receive(self) -> Any:
        async with asyncio.timeout(5):
            frame = await self.socket.recv()
        assert isinstance(frame, bytes) == self.packed
        return msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)

    async def until(self, kind: str) -> list[Any]:
        records = [await self.receive()]
        while records[-1]["type"] != kind:
            records.append(await self.receive())
        return records

    async def closed(self) -> tuple[int, str]:
        """Read to the end; the close code and reason."""
        try:
            async with asyncio.timeout(5):
                while True:
                    await self.socket.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


def dial(running: RunningServer, session_id: str, **options: Any) -> connect:
    options = {"subprotocols": [JSON], "proxy": None, "max_size": None} | options
    return connect(f"{running.websocket_url}/v1/sessions/{session_id}/stream", **options)


@pytest.fixture(params=[JSON, MSGPACK])
async def talk(running: RunningServer, session_id: str, request: pytest.FixtureRequest) -> AsyncGenerator[Talk, None]:
    async with dial(running, session_id, subprotocols=[request.param]) as socket:
        talk = Talk(socket)
        ready = await talk.receive()
        assert (ready["type"], ready["session"]["id"]) == ("session.ready", session_id)
        yield talk


async def test_append_and_generate(talk: Talk, pool: ScriptedPool, session_id: str) -> None:
    await talk.send(type="append", op_id="a", text="語\u0000")
    assert await talk.receive() == {"type": "append.completed", "op_id": "a", "tokens": 2, "position": 2}
    await talk.send(type="append", messages=[{"role": "user", "content": "Hi"}])
    assert (await talk.receive())["op_id"].startswith("op_")
    await talk.send(type="generate", op_id="g", prompt="Say it.", max_tokens=5, temperature=0, stop="\n")
    records = await talk.until("generation.completed")
    generation_id = records[0]["generation_id"]
    assert records[0] == {"type": "generation.started", "generation_id": generation_id, "op_id": "g"}
    assert records[1] == {"type": "generation.delta", "generation_id": generation_id, "index": 0, "text": "Hello"}
    assert (records[-1]["op_id"], records[-1]["generation"]["text"]) == ("g", "Hello, world.")
    request = pool.requests[-1]
    assert isinstance(request, Generate)
    assert (request.sampling.max_tokens, request.sampling.stop) == (5, ("\n",))


async def test_a_generation_is_idempotent_and_can_be_taken_up(talk: Talk, pool: ScriptedPool, session_id: str) -> None:
    await talk.send(type="generate", op_id="g", prompt="Say it.")
    first = await talk.until("generation.completed")
    name = first[0]["generation_id"]
    await talk.send(type="generate", op_id="g", prompt="Say it.")
    assert await talk.until("generation.completed") == first
    await talk.send(type="resume", generation_id=name, op_id="g")
    assert await talk.until("generation.completed") == first
    await talk.send(type="resume", generation_id=name, after=2)
    told = await talk.until("generation.completed")
    assert [record.get("index") for record in told] == [2, None]
    assert "op_id" not in told[-1]
    assert pool.sent == len(pool.deltas)


async def test_a_generation_that_broke_off_with_the_socket_goes_on_in_another(
    running: RunningServer, session_id: str, pool: ScriptedPool
) -> None:
    pool.gate.clear()
    async with dial(running, session_id) as socket:
        talk = Talk(socket)
        await talk.send(type="generate")
        started = (await talk.until("generation.started"))[-1]
    async with asyncio.timeout(5):
        await pool.closed.wait()
    pool.gate.set()
    async with dial(running, session_id) as socket:
        talk = Talk(socket)
        await talk.receive()
        await talk.send(type="resume", generation_id=started["generation_id"], after=0)
        records = await talk.until("generation.completed")
    assert [record.get("index") for record in records] == [0, 1, 2, None]


async def test_generations_of_other_sessions_cannot_be_taken_up(
    talk: Talk, store: Store, http: httpx2.AsyncClient, pool: ScriptedPool
) -> None:
    other = (await http.post("/v1/sessions")).json()["id"]
    name = "gen_" + "0" * 32
    await record_generation(store, other, name)
    await talk.send(type="resume", generation_id=name, op_id="r")
    record = await talk.receive()
    assert (record["error"]["code"], record["op_id"]) == ("not_found", "r")
    assert pool.requests == []


async def test_work_is_done_in_order_while_ping_and_cancel_act_at_once(talk: Talk, pool: ScriptedPool) -> None:
    pool.gate.clear()
    await talk.send(type="generate", op_id="first")
    started = await talk.receive()
    for number in range(3):
        await talk.send(type="append", op_id=str(number), text="x")
    await talk.send(type="ping")
    assert await talk.receive() == {"type": "pong"}
    assert pool.appends == []
    await talk.send(type="cancel", generation_id=started["generation_id"])
    completed = await talk.receive()
    assert completed["generation"]["finish_reason"] == "cancelled"
    assert [(await talk.receive())["op_id"] for _ in range(3)] == ["0", "1", "2"]


async def test_a_cancel_that_comes_too_late_is_an_error_record(talk: Talk) -> None:
    await talk.send(type="cancel", generation_id="gen_1")
    assert (await talk.receive())["error"]["code"] == "not_found"
    await talk.send(type="ping")
    assert await talk.receive() == {"type": "pong"}


async def test_errors_carry_the_operation_and_leave_the_socket_open(talk: Talk, pool: ScriptedPool) -> None:
    pool.fail_before = SessionBusy("busy")
    await talk.send(type="generate", op_id="g")
    record = await talk.receive()
    assert (record["type"], record["op_id"], record["error"]["code"]) == ("error", "g", "session_busy")
    pool.fail_before = RuntimeError("secret")
    await talk.send(type="generate", op_id="h")
    record = await talk.receive()
    assert (record["op_id"], record["error"]["code"]) == ("h", "internal_error")
    assert "secret" not in str(record)
    await talk.send(type="append", text="x")
    assert (await talk.receive())["type"] == "append.completed"


@pytest.mark.parametrize(
    ("record", "param"),
    [
        ({"type": "sing"}, "type"),
        ({"type": ["append"]}, "type"),
        ({}, "type"),
        ({"type": "append", "op_id": "o"}, None),
        ({"type": "append", "op_id": "o", "text": ""}, "text"),
        ({"type": "append", "text": 5}, "text"),
        ({"type": "generate", "temperature": "hot"}, "temperature"),
        ({"type": "generate", "max_tokens": 0}, "max_tokens"),
        ({"type": "cancel"}, "generation_id"),
        ({"type": "resume"}, "generation_id"),
        ({"type": "resume", "generation_id": "g", "after": -2}, "after"),
        ({"type": "resume", "generation_id": "g", "after": 1 << 31}, "after"),
        ({"type": "ping", "payload": 1}, "payload"),
    ],
)
async def test_bad_records_are_named(talk: Talk, record: dict[str, Any], param: str | None) -> None:
    await talk.send(**record)
    answer = await talk.receive()
    assert (answer["type"], answer["error"]["param"]) == ("error", param)
    assert answer.get("op_id") == record.get("op_id")
    await talk.send(type="ping")
    assert await talk.receive() == {"type": "pong"}


async def test_garbage_is_answered_then_refused(talk: Talk) -> None:
    garbage: list[str | bytes] = [b"\xc1\xff", "{", "[]", b"", "[" * 5000, b"\x93\x01", '{"type": "\\ud800"}', b"\xdf"]
    for frame in garbage:
        await talk.socket.send(frame)
        assert (await talk.receive())["type"] == "error"
    await talk.send(type="ping")
    assert await talk.receive() == {"type": "pong"}
    for frame in garbage * 2:
        await talk.socket.send(frame)
    code, reason = await talk.closed()
    assert (code, reason) == (1008, "16 bad frames in a row")


async def test_a_full_queue_refuses_the_record_only(talk: Talk, pool: ScriptedPool) -> None:
    pool.append_gate.clear()
    for number in range(80):
        await talk.send(type="append", op_id=str(number), text="x")
    refused = [await talk.receive() for _ in range(15)]
    assert {record["error"]["code"] for record in refused} == {"overloaded"}
    assert [record["op_id"] for record in refused] == [str(number) for number in range(65, 80)]
    pool.append_gate.set()
    assert [(await talk.receive())["op_id"] for _ in range(65)] == [str(number) for number in range(65)]


async def test_too_large_a_frame_closes(talk: Talk) -> None:
    await talk.socket.send("x" * (1 << 20) + "x")
    assert (await talk.closed())[0] == 1009


async def test_a_disconnect_cancels_and_drops_what_waits(
    running: RunningServer, session_id: str, pool: ScriptedPool
) -> None:
    pool.gate.clear()
    async with dial(running, session_id) as socket:
        talk = Talk(socket)
        await talk.receive()
        await talk.send(type="generate")
        await talk.send(type="append", text="x")
        assert (await talk.receive())["type"] == "generation.started"
    async with asyncio.timeout(5):
        await pool.closed.wait()
    assert pool.appends == []


async def test_unknown_sessions_are_refused_so_that_browsers_see_it(running: RunningServer) -> None:
    for name in ("sess_" + "0" * 32, "nonsense"):
        async with dial(running, name) as socket:
            talk = Talk(socket)
            assert (await talk.receive())["error"]["code"] == "not_found"
            assert (await talk.closed())[0] == 1008


async def test_subprotocols(running: RunningServer, session_id: str) -> None:
    async with dial(running, session_id, subprotocols=None) as socket:
        assert socket.subprotocol is None
        assert (await Talk(socket).receive())["type"] == "session.ready"
    async with dial(running, session_id, subprotocols=["graphql-ws", MSGPACK, JSON]) as socket:
        assert socket.subprotocol == MSGPACK
    async with dial(running, session_id, subprotocols=["graphql-ws"]) as socket:
        code, reason = await Talk(socket).closed()
        assert code == 1008
        assert MSGPACK in reason


async def test_not_ready_asks_to_come_back(running: RunningServer, session_id: str, pool: ScriptedPool) -> None:
    pool.described = None
    async with dial(running, session_id) as socket:
        assert (await Talk(socket).receive())["error"]["code"] == "unavailable"
        assert (await Talk(socket).closed())[0] == 1013


async def test_a_session_that_is_not_served_is_refused(
    running: RunningServer, session_id: str, pool: ScriptedPool
) -> None:
    pool.described = offering(*OTHERS)
    async with dial(running, session_id) as socket:
        assert (await Talk(socket).receive())["error"]["code"] == "model_not_served"
        code, reason = await Talk(socket).closed()
        assert code == 1008
        assert "slots of tiny/scripted" in reason
    assert pool.requests == []


async def test_handshake_carries_the_request_id(running: RunningServer, session_id: str) -> None:
    async with dial(running, session_id, additional_headers={"x-request-id": "mine"}) as socket:
        assert socket.response
        assert socket.response.headers["x-request-id"] == "mine"


class TestSlowReader:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"send_timeout_seconds": 0.3}

    async def test_a_client_that_never_reads_is_given_up(
        self, running: RunningServer, session_id: str, pool: ScriptedPool
    ) -> None:
        pool.deltas = ["x" * 65_536] * 2000
        async with dial(running, session_id, max_queue=1) as socket:
            await Talk(socket).send(type="generate")
            async with asyncio.timeout(10):
                await pool.closed.wait()
            assert pool.sent < 1000
            socket.transport.abort()


class TestKeys:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"key-a": "a"}}

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"additional_headers": {"Authorization": "Bearer key-a"}}, "not_found"),
            ({"subprotocols": [JSON, "palimpsest.key.key-a"]}, "not_found"),
            ({"subprotocols": [JSON, "palimpsest.key.key-b"]}, "unauthenticated"),
            ({}, "unauthenticated"),
        ],
    )
    async def test_a_key_comes_as_header_or_subprotocol(
        self, running: RunningServer, options: dict[str, Any], code: str
    ) -> None:
        async with dial(running, "sess_" + "0" * 32, **options) as socket:
            assert socket.subprotocol == JSON
            assert (await Talk(socket).receive())["error"]["code"] == code
            assert (await Talk(socket).closed())[0] == 1008
