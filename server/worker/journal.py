"""Group commit: entries that arrive while one commit is under way go into the next, all in one fsync."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from server.store.base import JournalEntry, Store


class Journal:
    """The only way a worker writes tokens. Entries become durable in the order they were added."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[tuple[JournalEntry, asyncio.Future[str]]] = deque()
        self._arrived = asyncio.Event()
        self._newest: asyncio.Future[str] | None = None

    def add(self, entry: JournalEntry) -> asyncio.Future[str]:
        """Queue an entry. The future is done once it is durable, with the session's new ETag, or fails with why it was
        refused."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        self._newest = future
        self._arrived.set()
        return future

    async def settled(self) -> None:
        """Wait until everything added so far is durable or refused."""
        newest = self._newest
        if newest is not None and not newest.done():
            await asyncio.wait([newest])

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch = list(self._waiting)
            self._waiting.clear()
            outcomes: Sequence[Exception | str]
            try:
                outcomes = await self._store.journal([entry for entry, _ in batch])
            except Exception as error:
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.cancelled():
                    continue
                if isinstance(outcome, str):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
                    future.exception()  # marks it as seen: a caller that went away is no fault
