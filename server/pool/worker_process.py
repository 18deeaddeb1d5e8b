"""One worker process as the pool sees it: started, watched, started again when it dies."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import structlog

from server.errors import Unavailable, WorkerLost
from server.messages import Answer, Failed, Ready, Request, pack, unpack_answer
from server.settings import Settings

CANNOT_SERVE = 78
"""The worker's exit code when starting it again would not help."""
_LONGEST_PAUSE = 15.0
_STEADY_SECONDS = 30.0

log = structlog.get_logger()


class WorkerProcess:
    """Owns the process and the answers that are still to come from it.

    Each request has a queue of answers under its id; when the process dies, every one of them gets `WorkerLost`.
    """

    def __init__(
        self, index: int, settings: Settings, endpoint: str, send: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        self.index = index
        self._settings, self._endpoint, self._send = settings, endpoint, send
        self._answers: dict[int, asyncio.Queue[Answer]] = {}
        self._next_id = 1
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.ready: Ready | None = None
        self.cannot_serve = False

    async def run(self) -> None:
        """Keep a process running until `stop`."""
        pause = 0.2
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began = loop.time()
            code = await self._run_once()
            if self._stopping:
                return
            if code == CANNOT_SERVE:
                self.cannot_serve = True
                return
            if loop.time() - began > _STEADY_SECONDS:
                pause = 0.2
            log.error("worker died; starting it again", worker=self.index, exit_code=code, pause_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_once(self) -> int:
        environment = {**os.environ, **self._settings.environment()}
        environment.pop("PALIMPSEST_API_KEYS", None)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server.worker",
            str(self.index),
            self._endpoint,
            stdin=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then drains its workers
        )
        try:
            return await self._process.wait()
        finally:
            self._lost()

    def _lost(self) -> None:
        self.ready = None
        lost = WorkerLost("the worker died and is being started again; everything acknowledged is safe: ask again")
        for queue in self._answers.values():
            queue.put_nowait(Failed.of(lost))

    def receive(self, frame: bytes) -> None:
        """Take one envelope from the worker."""
        request_id, answer = unpack_answer(frame)
        if isinstance(answer, Ready):
            self.ready = answer
            log.info(
                "worker ready",
                worker=self.index,
                pid=self._process.pid if self._process else None,
                device=answer.device,
                dtype=answer.dtype,
                kernels=answer.kernels,
                serves=[f"{offer.pair}: {offer.state_bytes / 2**20:.1f} MiB a session" for offer in answer.offers],
            )
        elif (queue := self._answers.get(request_id)) is not None:
            queue.put_nowait(answer)

    async def request(self, request: Request) -> tuple[int, asyncio.Queue[Answer]]:
        """Send a request; its answers come into the queue. Call `forget` with the id when no more are wanted."""
        if self.ready is None:
            raise Unavailable(self._why_not_ready(), code="not_ready", retry_after=2.0)
        request_id, self._next_id = self._next_id, self._next_id + 1
        queue: asyncio.Queue[Answer] = asyncio.Queue()
        self._answers[request_id] = queue
        await self._send(self.index, pack(request_id, request))
        return request_id, queue

    def forget(self, request_id: int) -> None:
        """Drop what still comes for a request."""
        self._answers.pop(request_id, None)

    def _why_not_ready(self) -> str:
        if self.cannot_serve:
            return "the model cannot be served with these settings; the server's log says why"
        return "the model is still being loaded; ask again in a moment"

    def expect_exit(self) -> None:
        """The process is about to end, and is not to be started again."""
        self._stopping = True

    async def end(self, patience: float) -> None:
        """Wait for the process to end by itself; kill it when it takes longer."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
