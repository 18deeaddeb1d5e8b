"""Who leaves memory for another, and that steps go on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

import pytest

from models.passage import Lifted
from server.settings import Settings
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
    assert await two_places.engine.snapshot(two_places.engine.sessions["newer"])
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
    lifted = await two_places.engine.compute(runner.lift, session.row)
    position = session.folded
    await two_places.append("one")
    assert session.folded > position
    assert runner.encode(lifted)[0] == position
