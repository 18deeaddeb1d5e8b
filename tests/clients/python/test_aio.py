"""The client for asyncio: the same promises, awaited."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from palimpsest import (
    AsyncClient,
    ConnectionFailed,
    GenerationCompleted,
    GenerationDelta,
    NotFound,
    SocketClosed,
    StreamBroken,
    Unavailable,
)


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url) as client:
        yield client


async def eventually(holds: Any) -> bool:
    for _ in range(500):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


async def test_sessions(client: AsyncClient, script: Any) -> None:
    made = [await client.sessions.create(metadata={"name": str(number)}) for number in range(101)]
    names = [session.name async for session in client.sessions.all()]
    assert names == [str(number) for number in reversed(range(101))]
    first = await client.sessions.get(made[0].id)
    assert (await client.sessions.update(first.id, metadata={"name": "x"})).name == "x"
    assert (await client.sessions.list(limit=1)).has_more
    await client.sessions.delete(first.id)
    with pytest.raises(NotFound):
        await client.sessions.get(first.id)
    assert await client.ready()
    assert [model.id for model in await client.models()] == ["echo"]
    assert await client.version() == {"version": "0.1.0"}
    assert (await made[1].memory()).folds == 2


async def test_append_is_applied_once_behind_broken_connections(client: AsyncClient, script: Any, failure: Any) -> None:
    session = await client.sessions.create()
    script.failures.extend([failure("append", drop=True), failure("append")])
    assert (await session.append("once")).position == 4
    assert script.texts[session.id] == "once"


async def test_a_dropped_generation_is_not_repeated(client: AsyncClient, script: Any, failure: Any) -> None:
    session = await client.sessions.create()
    script.failures.append(failure("generate", drop=True))
    with pytest.raises(ConnectionFailed):
        await session.generate("x")
    assert len(script.generations) == 1
    assert (await session.generate("x")).text == "echo: x "


async def numbers() -> AsyncIterator[str]:
    for number in range(3):
        await asyncio.sleep(0)
        yield str(number)


@pytest.mark.parametrize("make", [lambda: ["01", "2"], lambda: io.StringIO("012"), numbers])
async def test_append_stream(client: AsyncClient, script: Any, make: Any) -> None:
    session = await client.sessions.create()
    assert (await session.append_stream(make())).tokens == 3
    assert script.texts[session.id] == "012"


async def test_a_seekable_file_is_sent_again(client: AsyncClient, script: Any, failure: Any) -> None:
    session = await client.sessions.create()
    script.failures.append(failure("append"))
    await session.append_stream(io.BytesIO(b"abc"))
    script.failures.append(failure("append"))
    with pytest.raises(Unavailable):
        await session.append_stream(numbers())
    assert script.texts[session.id] == "abc"


async def test_stream(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    events = [event async for event in session.stream("a b")]
    assert isinstance(events[-1], GenerationCompleted)
    async with session.stream("forever") as stream:
        async for event in stream:
            if isinstance(event, GenerationDelta):
                break
    assert await eventually(lambda: script.cancelled == ["gen_2"])
    script.sse_ending = "cut"
    with pytest.raises(StreamBroken):
        [event async for event in session.stream("a b")]


async def test_a_cancelled_task_cancels_its_stream(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()

    async def read() -> None:
        async with session.stream("forever") as stream:
            async for _ in stream:
                pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 0.3)
    assert await eventually(lambda: script.cancelled == ["gen_1"])


async def test_socket(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    async with session.connect() as socket:
        assert (await socket.append("ü")).tokens == 1
        stream = socket.generate("hi")
        assert [delta.text async for delta in stream] == ["echo: ", "hi "]
        assert stream.result is not None
        await socket.ping()
        endless = socket.generate("forever")
        async for delta in endless:
            if delta.index == 2:
                await socket.cancel()
        assert endless.result is not None
        assert endless.result.finish_reason == "cancelled"
        async with socket.generate("forever") as left:
            await anext(left)
        assert [delta.text async for delta in socket.generate("on")] == ["echo: ", "on "]
    assert socket.closed
    assert script.cancelled == ["gen_2", "gen_3"]


async def test_tasks_share_a_socket(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()

    async def ask(number: int) -> str:
        return "".join([delta.text async for delta in socket.generate(f"n {number}", remember=False)])

    async with session.connect("json") as socket, asyncio.timeout(20):
        answers = await asyncio.gather(*(ask(number) for number in range(5)), socket.ping())
    assert answers[:5] == [f"echo: n {number} " for number in range(5)]


async def test_a_cancelled_task_cancels_its_generation(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    async with session.connect() as socket:

        async def read() -> None:
            async for _ in socket.generate("forever"):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.3)
        assert (await socket.append("x")).tokens == 1
    assert script.cancelled == ["gen_1"]


async def test_a_closed_socket(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    script.socket_close = (1012, 1)
    async with session.connect() as socket:
        with pytest.raises(SocketClosed) as caught:
            [delta async for delta in socket.generate("a b")]
    assert caught.value.reconnect
