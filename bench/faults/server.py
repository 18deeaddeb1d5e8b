"""A server process, handled from an event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

from bench.server_process import PATIENCE, ServerProcess


class Server:
    """Keeps its last address while it is down, so that whoever asks then is refused rather than astonished.

    `reached` is the folder in which fail points leave a file.
    """

    def __init__(self, process: ServerProcess, reached: Path) -> None:
        self.process, self._reached = process, reached
        self.url = "http://127.0.0.1:9"

    @property
    def data_dir(self) -> Path:
        """Folder of its embedded store."""
        return self.process.data_dir

    @property
    def reached(self) -> frozenset[str]:
        """The fail points at which it has failed."""
        return frozenset(path.name for path in self._reached.iterdir())

    async def start(self) -> None:
        """Start, and wait until it takes requests."""
        self.url = await asyncio.to_thread(self.process.start)

    async def launch(self) -> None:
        """Start, and wait until it listens."""
        self.process.launch()
        self.url = await asyncio.to_thread(lambda: self.process.url)

    async def wait_ready(self) -> None:
        """Wait until it takes requests, after `kill_worker` with another worker."""
        await asyncio.to_thread(self.process.wait_ready)

    async def kill(self) -> None:
        """SIGKILL; its workers follow."""
        await asyncio.to_thread(self.process.kill)

    async def stop(self) -> None:
        """SIGTERM, and wait until it has drained."""
        await asyncio.to_thread(self.process.stop)

    async def restart(self) -> None:
        """SIGKILL, and start again over the same data."""
        await self.kill()
        await self.start()

    async def kill_worker(self) -> None:
        """SIGKILL the worker, and wait for the next one."""
        self.process.kill_worker()
        await self.wait_ready()

    async def end(self) -> None:
        """Leave no process behind, whatever state it is in."""
        await asyncio.to_thread(self.process.kill)

    async def readiness(self) -> int:
        """Status of `/readyz`."""
        async with httpx2.AsyncClient(timeout=PATIENCE, trust_env=False) as http:
            return (await http.get(f"{self.url}/readyz")).status_code
