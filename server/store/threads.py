"""Threads that an object owns: blocking work leaves the event loop, and once begun always runs to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.errors import StoreUnavailable

Result = TypeVar("Result")


class WorkThreads:
    """`count` threads and a queue. With one thread, work runs in the order it was handed in."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do `work` on a thread. A cancelled caller stops waiting; the work is done all the same."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(work)))

    def wait(self, work: Callable[[], Result]) -> Result:
        """Do `work` on a thread and block until it is done. Only for other threads, never on the event
        loop."""
        return self._submit(work).result()

    def shutdown(self) -> None:
        """Finish what is queued and end the threads. Blocks."""
        self._executor.shutdown()

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        try:
            return self._executor.submit(work)
        except RuntimeError as error:
            raise StoreUnavailable("The store is closed. Try again when the server is back.") from error
