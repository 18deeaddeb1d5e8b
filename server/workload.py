"""What is under way, and how it comes to an end when the server shuts down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

from server.errors import Draining


class Workload:
    """Counts what must not be cut off by a drain that still has time: generations, appends, sockets."""

    def __init__(self, drain_seconds: float) -> None:
        self.draining = asyncio.Event()
        self._drain_seconds = drain_seconds
        self._deadline = 0.0
        self._at_work = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin_drain(self) -> None:
        """Refuse new work from here on. Does nothing the second time."""
        if not self.draining.is_set():
            self._deadline = time.monotonic() + self._drain_seconds
            self.draining.set()

    def refuse_if_draining(self) -> None:
        """Raises `Draining`."""
        if self.draining.is_set():
            raise Draining("the server is shutting down; send this to the one that replaces it")

    @property
    def drain_remaining(self) -> float:
        """Seconds that running generations may still take."""
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def at_work(self) -> Generator[None, None, None]:
        """The drain waits for this block."""
        self._at_work += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._idle.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is `at_work`; False when `seconds` passed first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
