"""The client for asyncio: the same promises, awaited."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from palimpsest import (
    AsyncClient,
    ConnectionFailed,
    GenerationCompleted,
    GenerationDelta,
    NotFound,
    NotResumable,
    PreconditionFailed,
    SocketClosed,
    StreamBroken,
    Unavailable,
)

from tests.clients.python.script import Failure


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


async def test_append_is_applied_once_behind_broken_connections(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    script.failures.extend([Failure("append", drop=True), Failure("append")])
    assert (await session.append("once")).position == 4
    assert script.texts[session.id] == "once"


async def test_what_was_done_behind_a_broken_connection_is_done_once(
    client: AsyncClient, script: Any, tmp_path: Path
) -> None:
    script.failures.extend([Failure("create", drop=True), Failure("generate", drop=True), Failure("fork", drop=True)])
    session = await client.sessions.create(metadata={"name": "moby"})
    assert (await session.generate("x")).text == "echo: x "
    child = await session.fork()
    file = tmp_path / "session"
    script.failures.append(Failure("export", drop=True))
    await child.export_to(file)
    assert file.read_bytes() == await session.export()
    script.failures.append(Failure("import", drop=True))
    made = [await client.import_session(source) for source in (file, file.read_bytes())]
    assert list(script.sessions) == [session.id, child.id, *(one.id for one in made)]
    assert list(script.texts.values()) == ["x"] * 4
    assert len(script.generations) == 1
    script.failures.extend([Failure("export", drop=True)] * 3)
    with pytest.raises(ConnectionFailed):
        await child.export_to(file)
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == [file]


async def test_a_stale_etag_is_refused(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    stale = session.info.etag
    fresh = (await session.append("x", if_match=stale)).etag
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: session.append("y", if_match=stale),
        lambda: session.append_stream(["y"], if_match=stale),
        lambda: session.generate("y", if_match=stale),
        lambda: anext(session.stream("y", if_match=stale)),
        lambda: session.fork(if_match=stale),
        lambda: client.sessions.update(session.id, metadata={}, if_match=stale),
        lambda: client.sessions.delete(session.id, if_match=stale),
    ]
    for change in changes:
        with pytest.raises(PreconditionFailed):
            await change()
    await client.sessions.delete(session.id, if_match=fresh)
    assert not script.sessions


async def numbers() -> AsyncIterator[str]:
    for number in range(3):
        await asyncio.sleep(0)
        yield str(number)


@pytest.mark.parametrize("make", [lambda: ["01", "2"], lambda: io.StringIO("012"), numbers])
async def test_append_stream(client: AsyncClient, script: Any, make: Any) -> None:
    session = await client.sessions.create()
    assert (await session.append_stream(make())).tokens == 3
    assert script.texts[session.id] == "012"


async def test_a_seekable_file_is_sent_again(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    script.failures.append(Failure("append"))
    await session.append_stream(io.BytesIO(b"abc"))
    script.failures.append(Failure("append"))
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


@pytest.mark.parametrize("ending", ["nothing", "cut", "error"])
async def test_a_stream_that_breaks_goes_on_where_it_stood(client: AsyncClient, script: Any, ending: str) -> None:
    session = await client.sessions.create()
    script.endings.extend([(ending, 0), (ending, 2), (ending, 1)])
    events = [event async for event in session.stream("a b c")]
    deltas = [event for event in events if isinstance(event, GenerationDelta)]
    assert [(delta.index, delta.text) for delta in deltas] == [(0, "echo: "), (1, "a "), (2, "b "), (3, "c ")]
    assert isinstance(events[-1], GenerationCompleted)
    assert script.told == [("gen_1", 1), ("gen_1", 2)]
    assert len(script.generations) == 1


async def test_a_stream_that_stays_broken_can_be_resumed_later(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    script.endings.extend([("cut", 3), ("cut", 0), ("nothing", 0)])
    stream = session.stream("a b c")
    with pytest.raises(StreamBroken):
        [event async for event in stream]
    assert stream.generation_id is not None
    rest = [event async for event in client.resume(stream.generation_id, stream.after)]
    assert [event.text for event in rest if isinstance(event, GenerationDelta)] == ["b ", "c "]
    script.endings.append(("cut", 3))
    script.forgetful = True
    with pytest.raises(NotResumable):
        [event async for event in session.stream("a b c", remember=False)]


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


async def test_a_socket_goes_on_over_another_connection(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    lost: list[SocketClosed] = []
    script.socket_closes.extend([(1012, -1), (1012, 2), (1011, 1), (1013, -1)])
    async with session.connect(on_lost=lost.append) as socket:
        assert (await socket.append("once ")).position == 5
        deltas = [delta async for delta in socket.generate("a b c")]
        assert (await socket.append("!")).position == 11
    assert [(delta.index, delta.text) for delta in deltas] == [(0, "echo: "), (1, "a "), (2, "b "), (3, "c ")]
    assert script.texts[session.id] == "once a b c!"
    assert script.told == [("gen_1", 1), ("gen_1", 2)]
    assert len(lost) == 4


async def test_tasks_share_a_socket_over_its_connections(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    script.socket_closes.extend([(1012, 2), (1011, 1), (1012, 3), (1001, 1), (1012, -1)])

    async def ask(number: int) -> str:
        return "".join([delta.text async for delta in socket.generate(f"n {number}")])

    async with session.connect(retries=20) as socket, asyncio.timeout(20):
        answers = await asyncio.gather(*(ask(number) for number in range(4)), socket.ping())
    assert answers[:4] == [f"echo: n {number} " for number in range(4)]
    assert len(script.generations) == 4
    assert not script.socket_closes


async def test_a_socket_that_is_refused_or_finds_nothing(client: AsyncClient, script: Any) -> None:
    session = await client.sessions.create()
    async with session.connect() as socket:
        script.socket_errors.extend(["worker_lost"] * 2)
        assert (await socket.append("x")).position == 1
        script.socket_closes.append((1008, 2))
        with pytest.raises(SocketClosed) as caught:
            [delta async for delta in socket.generate("a b")]
        assert not caught.value.reconnect
    script.forgetful = True
    script.socket_closes.append((1012, 2))
    async with session.connect() as socket:
        with pytest.raises(NotResumable):
            [delta async for delta in socket.generate("a b", remember=False)]
    with pytest.raises(SocketClosed):
        await socket.append("y")
