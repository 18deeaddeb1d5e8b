"""One session, several servers: one of them holds it, and lets it go when another is asked for it."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import SessionBusy, SessionHeld
from server.messages import GenerationCompleted
from tests.server.worker.conftest import Bench, Work


def text_of(bench: Bench, generation_id: str) -> str:
    found = [e for e in bench.events if e.generation_id == generation_id and isinstance(e, GenerationCompleted)]
    return found[-1].text


async def test_a_session_moves_to_the_server_that_is_asked(work: Work) -> None:
    async with work("one") as one, work("two") as two:
        await one.create("twin", "it")
        for turn in range(6):
            await one.append("twin", f"seti {turn} ")
            await (one if turn % 2 else two).append("it", f"seti {turn} ")
        assert await one.position("it") == await one.position("twin")
        await one.generate("twin", "whole", remember=False)
        await two.generate("it", "gen", remember=False)
        assert text_of(two, "gen") == text_of(one, "whole")


async def test_requests_from_two_sides_all_succeed(work: Work) -> None:
    async with work("one") as one, work("two") as two:
        await one.create("it")
        start = await one.position("it")

        async def write(bench: Bench, name: str) -> int:
            tokens = 0
            for number in range(8):
                tokens += (await bench.append("it", f"{name} {number}. ", op_id=f"{name}{number}")).tokens
            return tokens

        async with asyncio.timeout(30):
            written = await asyncio.gather(write(one, "kelo"), write(two, "rati"))
        assert await one.position("it") == start + sum(written)


async def test_it_stays_where_it_generates(work: Work) -> None:
    async with work("one") as one, work("two") as two:
        await one.create("it")
        running = asyncio.ensure_future(one.generate("it", "gen", count=1500))
        await one.heard("gen", 3)
        with pytest.raises(SessionBusy):
            await two.append("it")
        assert not running.done()
        await running
        position = await one.position("it")
        await asyncio.sleep(0.5)
        assert (await two.append("it")).position > position


async def test_one_that_does_not_answer_is_superseded_when_its_lease_ends(work: Work) -> None:
    async with work("one", holding=False) as one, work("two") as two:
        await one.create("it")
        with pytest.raises(SessionHeld) as held:
            await two.append("it")
        assert 0 < (held.value.retry_after or 0) <= 1.5
        await asyncio.sleep(0.8)
        position = (await two.append("it", "rati ")).position
        # The first one still believes that it holds the session; it must find out before it writes.
        async with asyncio.timeout(10):
            assert (await one.append("it", "nura ")).position > position


async def test_a_lease_is_kept_while_its_holder_lives(work: Work) -> None:
    async with work("one") as one, work("two", holding=False) as two:
        await one.create("it")
        fence = one.engine.sessions["it"].lease
        await asyncio.sleep(2.0)
        await one.append("it")
        assert one.engine.sessions["it"].lease == fence
        await two.append("it")
        assert "it" not in one.engine.sessions
