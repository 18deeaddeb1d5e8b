"""A generation in several streams is heard as one, or it is noticed that it was not."""

from __future__ import annotations

import pytest

from bench.faults.hearing import Hearing, WrongStory
from bench.faults.wire import Fields, NoAnswer, Wire
from tests.bench.faults.conftest import DELTAS, FakeServer


async def begin(wire: Wire, hearing: Hearing) -> Fields:
    async with wire.stream("sess_0", {"max_tokens": 3}, "op") as events:
        return await hearing.listen(events)


async def go_on(wire: Wire, hearing: Hearing) -> Fields:
    assert hearing.generation_id is not None
    async with wire.resume(hearing.generation_id, hearing.last) as events:
        return await hearing.listen(events)


async def test_a_stream_that_breaks_is_joined_with_the_next(fake: FakeServer) -> None:
    async with Wire(fake) as wire:
        await wire.create()
        hearing = Hearing()
        fake.break_after = 3
        with pytest.raises(NoAnswer, match="ended before"):
            await begin(wire, hearing)
        assert (hearing.last, hearing.text) == (2, "".join(DELTAS[:2]))
        await go_on(wire, hearing)
        assert hearing.text == "".join(DELTAS)


async def test_one_that_is_left_is_left_once(fake: FakeServer) -> None:
    async with Wire(fake) as wire:
        await wire.create()
        hearing = Hearing(leave_after=1)
        with pytest.raises(NoAnswer, match="left"):
            await begin(wire, hearing)
        await go_on(wire, hearing)
        assert hearing.text == "".join(DELTAS)


async def test_a_text_that_changes_is_noticed(fake: FakeServer) -> None:
    async with Wire(fake) as wire:
        await wire.create()
        hearing = Hearing(leave_after=1)
        fake.lie = True
        with pytest.raises(NoAnswer):
            await begin(wire, hearing)
        with pytest.raises(WrongStory, match="four"):
            await go_on(wire, hearing)


async def test_an_event_that_is_told_again_is_noticed(fake: FakeServer) -> None:
    async with Wire(fake) as wire:
        await wire.create()
        hearing = Hearing(leave_after=2)
        with pytest.raises(NoAnswer):
            await begin(wire, hearing)
        async with wire.resume("gen_1", 0) as events:
            with pytest.raises(WrongStory, match="event 1 came behind event 2"):
                await hearing.listen(events)


async def test_a_server_that_is_not_there_gives_no_answer(fake: FakeServer) -> None:
    fake.url = "http://127.0.0.1:9"
    async with Wire(fake) as wire:
        with pytest.raises(NoAnswer):
            await wire.create()
