"""Store calls as tasks of their own: a caller that goes away stops waiting, what was begun goes on to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from server.errors import StoreUnavailable
from server.store.redis_failures import FAILURES, unavailable

Result = TypeVar("Result")


class Calls:
    """Owns the tasks. `ready` is awaited before the work of each: it raises `StoreUnavailable` when there is no use in going on."""

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        self._ready = ready
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waits: set[asyncio.Task[Any]] = set()
        self._closed = True

    def open(self) -> None:
        """Take calls."""
        self._closed = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        """Do `work`, which talks to Redis. Raises `StoreUnavailable` when it takes longer than `seconds`."""
        task = self._begin(self._bounded(work, seconds), self._tasks)
        # The caller's patience does not depend on how long the task takes to notice that its time is up.
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise unavailable(TimeoutError())
        return task.result()

    async def wait(self, work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        """As `run`, for work that does nothing but wait: it ends with its caller, and with the store."""
        task = self._begin(self._bounded(work, seconds), self._waits)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise _closed() from None

    async def close(self) -> None:
        """Take no more calls, and see the ones that run to their end."""
        self._closed = True
        for task in self._waits:
            task.cancel()
        if pending := self._tasks | self._waits:
            await asyncio.wait(pending)

    def _begin(self, work: Coroutine[Any, Any, Result], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Result]:
        if self._closed:
            work.close()
            raise _closed()
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_seen)
        return task

    async def _bounded(self, work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        try:
            async with asyncio.timeout(seconds):
                await self._ready()
                return await work()
        except FAILURES as error:
            raise unavailable(error) from error


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may be left to hear of a failure."""
    if not task.cancelled():
        task.exception()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("The store is not open. Try again when the server is ready.")
