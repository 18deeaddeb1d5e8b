from __future__ import annotations

import asyncio

import pytest

from server.errors import NotFound
from server.pairs import Pair
from server.worker.session import Session


def resident(folded: int = 0) -> Session:
    session = Session("sess", "t", Pair("m", "window"), None, journaled=folded, folded=folded)
    session.row = 0
    return session


async def test_those_who_wait_are_woken_when_their_tokens_are_folded() -> None:
    session = resident()
    session.take([1, 2, 3])
    near, far = session.reached(2), session.reached(3)
    assert session.has_work
    session.folded = 2
    session.notify()
    assert near.done()
    assert not far.done()
    session.folded = 3
    session.notify()
    assert far.done()
    assert not session.has_work


async def test_being_resident_is_waited_for_too() -> None:
    session = Session("sess", "t", Pair("m", "window"), None)
    waiting = session.reached(0)
    session.notify()
    assert not waiting.done()
    assert session.has_work
    session.row = 1
    session.notify()
    assert waiting.done()


async def test_what_is_reached_already_is_not_waited_for() -> None:
    assert resident(5).reached(5).done()


async def test_a_session_that_is_away_reads_its_tokens_from_the_store_later() -> None:
    session = Session("sess", "t", Pair("m", "window"), None)
    session.take([1, 2])
    assert session.journaled == 2
    assert not session.pending


async def test_a_failure_ends_everything_that_waits_or_will() -> None:
    session = resident()
    session.take([1])
    waiting, cancelled = session.reached(1), session.reached(1)
    cancelled.cancel()
    session.fail(NotFound("deleted"))
    with pytest.raises(NotFound):
        await waiting
    with pytest.raises(NotFound):
        session.check()
    async with asyncio.timeout(1):
        with pytest.raises(NotFound):
            await session.reached(0)


def test_the_position_counts_what_is_held_back() -> None:
    session = Session("sess", "t", Pair("m", "window"), None, journaled=7, open_text="kelo", open_tokens=2)
    assert session.position == 9
    assert session.standing.begun
    assert session.standing.open_text == "kelo"
