from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from server.errors import StaleLease, StoreUnavailable
from server.store.base import JournalEntry, Lease, Store
from server.worker.journal import Journal


class SlowStore:
    """Commits when `gate` lets it, with the outcomes a test wants."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.commits: list[list[int]] = []
        self.refused: dict[int, Exception] = {}
        self.failure: Exception | None = None

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        """As the test has it."""
        self.commits.append([entry.start for entry in entries])
        self.begun.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [self.refused.get(entry.start, f"etag-{entry.start}") for entry in entries]


def entry(start: int) -> JournalEntry:
    return JournalEntry(Lease("sess", 1), start, [start], "", 0, "none")


@asynccontextmanager
async def running(store: SlowStore) -> AsyncGenerator[Journal, None]:
    journal = Journal(cast(Store, store))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        task = tasks.create_task(journal.run())
        yield journal
        task.cancel()


async def test_what_comes_during_a_commit_goes_into_the_next_one() -> None:
    store = SlowStore()
    async with running(store) as journal:
        first = journal.add(entry(0))
        await store.begun.wait()
        rest = [journal.add(entry(start)) for start in (1, 2, 3)]
        assert not first.done()
        store.gate.set()
        assert await asyncio.gather(first, *rest) == ["etag-0", "etag-1", "etag-2", "etag-3"]
    assert store.commits == [[0], [1, 2, 3]]


async def test_a_refusal_is_its_entry_s_alone() -> None:
    store = SlowStore()
    store.gate.set()
    store.refused[1] = StaleLease("another has it")
    async with running(store) as journal:
        futures = [journal.add(entry(start)) for start in (0, 1, 2)]
        await journal.settled()
        assert [future.exception() for future in futures] == [None, store.refused[1], None]


async def test_a_store_that_fails_fails_all_and_may_recover() -> None:
    store = SlowStore()
    store.gate.set()
    store.failure = StoreUnavailable("the disk is full")
    async with running(store) as journal:
        futures = [journal.add(entry(start)) for start in (0, 1)]
        for future in futures:
            with pytest.raises(StoreUnavailable, match="disk is full"):
                await future
        store.failure = None
        await journal.add(entry(0))


async def test_settled_waits_for_everything_added_before() -> None:
    store = SlowStore()
    async with running(store) as journal:
        await journal.settled()
        future = journal.add(entry(0))
        settled = asyncio.ensure_future(journal.settled())
        await asyncio.sleep(0.01)
        assert not settled.done()
        store.gate.set()
        await settled
        assert future.done()


async def test_a_caller_that_went_away_disturbs_nobody() -> None:
    store = SlowStore()
    async with running(store) as journal:
        gone, other = journal.add(entry(0)), journal.add(entry(1))
        gone.cancel()
        store.gate.set()
        await other
    assert store.commits == [[0, 1]]
