"""Who leaves memory for another, and that steps go on meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator

import pytest

from models.passage import Lifted
from server.errors import StoreUnavailable
from server.settings import Settings
from server.store.base import SessionRecord
from server.worker import moves, residency
from server.worker.runner import Runner
from tests.server.worker.conftest import Bench, working


@pytest.fixture
async def two_places(settings: Settings) -> AsyncGenerator[Bench, None]:
    async with working(settings.model_copy(update={"resident_sessions": 2}), "test/0/a") as bench:
        yield bench


def resident(bench: Bench) -> set[str]:
    return {key for key, session in bench.engine.sessions.items() if session.row is not None}


async def test_those_of_whom_nothing_is_to_be_written_leave_first(two_places: Bench) -> None:
    await two_places.create("older", "newer")
    assert await two_places.engine.moves.snapshot(two_places.engine.sessions["newer"])
    await two_places.create("third")
    assert resident(two_places) == {"older", "third"}


async def test_the_longest_unused_leaves_where_all_are_to_be_written(two_places: Bench) -> None:
    await two_places.create("older", "newer")
    await two_places.append("older")
    await two_places.create("third")
    assert resident(two_places) == {"older", "third"}


async def test_steps_go_on_while_a_state_is_encoded(two_places: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, go_on = Runner.encode, threading.Event()
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def slow(runner: Runner, lifted: Lifted) -> tuple[int, bytes]:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        return encode(runner, lifted)

    monkeypatch.setattr(Runner, "encode", slow)
    await two_places.create("leaving", "reading")
    coming = asyncio.create_task(two_places.create("coming"))
    await begun.wait()
    before = await two_places.position("reading")
    await two_places.append("reading")
    assert await two_places.position("reading") > before
    assert not coming.done()
    go_on.set()
    await coming
    assert resident(two_places) == {"coming", "reading"}


async def test_what_was_written_is_what_it_was_when_it_was_lifted(two_places: Bench) -> None:
    runner = two_places.runners.default
    await two_places.create("one")
    session = two_places.engine.sessions["one"]
    assert session.row is not None
    lifted = await two_places.engine.moves.compute(runner.lift, session.row)
    position = session.folded
    await two_places.append("one")
    assert session.folded > position
    assert runner.encode(lifted)[0] == position


@pytest.fixture
async def one_place_short_turns(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Bench, None]:
    monkeypatch.setattr(residency, "TURN_SECONDS", 0.05)
    async with working(settings.model_copy(update={"prefill_tokens": 16}), "test/0/a") as bench:
        yield bench


async def begins(bench: Bench, name: str) -> None:
    """Wait until a session reads."""
    while (session := bench.engine.sessions.get(name)) is None or not session.pending:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


LONG = "kelo rati nura seti. " * 400


async def test_who_reads_much_makes_room_and_reads_on_where_it_was(one_place_short_turns: Bench) -> None:
    bench = one_place_short_turns
    await bench.create("undisturbed", "long", "other", "asks")
    await bench.append("undisturbed", LONG)
    reading = [asyncio.create_task(bench.append(name, LONG)) for name in ("long", "other")]
    await begins(bench, "long")
    for generation in ("first", "second"):
        await bench.generate("asks", generation, count=3)
        assert not any(task.done() for task in reading)
    assert {(await task).status for task in reading} == {"remembered"}
    for name in ("undisturbed", "long", "other"):
        await bench.generate(name, name, count=20)
    told = ["".join(delta.text for delta in bench.deltas(name)) for name in ("undisturbed", "long", "other")]
    assert told[0] == told[1] == told[2] != ""


async def test_where_nothing_can_be_written_nobody_leaves_and_that_is_tried_now_and_then(
    one_place_short_turns: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, refused = one_place_short_turns, asyncio.Event()
    await bench.create("long", "asks")
    tries = 0

    async def refuse(*_: object) -> None:
        nonlocal tries
        tries += 1
        refused.set()
        raise StoreUnavailable("not now")

    reading = asyncio.create_task(bench.append("long", LONG))
    await begins(bench, "long")
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "save_snapshot", refuse)
        patch.setattr(moves, "_SAVE_AGAIN_SECONDS", 0.5)
        began = time.monotonic()
        asking = asyncio.create_task(bench.generate("asks", "asked", count=3))
        assert (await reading).status == "remembered"
        await refused.wait()
        await asyncio.sleep(0.2)
        assert tries <= 1 + (time.monotonic() - began) / 0.5
        assert not asking.done()
    await asking


async def test_a_tenant_with_fewer_rows_gets_the_next_one(one_place_short_turns: Bench) -> None:
    bench = one_place_short_turns
    await bench.create("a1", "a2", "a3")
    pair = bench.runners.default.offered.pair
    await bench.store.create(
        SessionRecord(id="b1", tenant="other", model=pair.model, memory=pair.memory, created_at=0.0, updated_at=0.0)
    )
    done: list[str] = []

    async def read(name: str, text: str) -> None:
        await bench.append(name, text)
        done.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name in ("a1", "a2", "a3"):
            tasks.create_task(read(name, LONG))
        await begins(bench, "a1")
        tasks.create_task(read("b1", LONG))
    # Half of the time is b1's, a third of the other half each of the others'.
    assert done[0] == "b1"
