"""Worker processes on this machine, one a device, reached over ZeroMQ on a Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import zmq
import zmq.asyncio

from server.errors import Internal, ServerError
from server.messages import (
    Answer,
    Append,
    Cancel,
    Check,
    Drain,
    Failed,
    Family,
    Forget,
    Generate,
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    Inspect,
    Measure,
    Measured,
    Ready,
    Resume,
)
from server.pool.worker_process import WorkerProcess
from server.settings import Settings

_EXIT_SECONDS = 10.0
"""How long a drained worker may take to write snapshots and leave."""


class LocalPool:
    """See `server.pool.base.Pool`. `on_hopeless` is called once when no worker can ever serve with these settings."""

    def __init__(self, settings: Settings, on_hopeless: Callable[[], None] = lambda: None) -> None:
        self._settings, self._on_hopeless = settings, on_hopeless
        self._folder = tempfile.TemporaryDirectory(prefix="palimpsest-")
        self._endpoint = f"ipc://{Path(self._folder.name) / 'workers.sock'}"
        self._workers = [
            WorkerProcess(index, settings, self._endpoint, self._send) for index in range(len(settings.device))
        ]
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin starting the workers."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # A worker started again has the identity of the one that died, whose end may not have been noticed yet.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.bind(self._endpoint)
        self._runner = asyncio.create_task(self._run(), name="pool")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(self._receive())
            keepers = [tasks.create_task(worker.run()) for worker in self._workers]
            await asyncio.gather(*keepers)
            if all(worker.cannot_serve for worker in self._workers):
                self._on_hopeless()
            receiving.cancel()

    async def _receive(self) -> None:
        while True:
            identity, frame = await self._socket.recv_multipart()
            self._workers[int(identity.rsplit(b"-", 1)[1])].receive(frame)

    async def _send(self, index: int, frame: bytes) -> None:
        await self._socket.send_multipart([f"worker-{index}".encode(), frame])

    async def stop(self, drain_seconds: float) -> None:
        """Drain every worker, wait until it has written its sessions, and end it."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers:
                tasks.create_task(self._drain(worker, drain_seconds))
        with suppress(asyncio.CancelledError):
            runner.cancel()
            await runner
        self._socket.close()
        self._context.term()
        self._folder.cleanup()

    async def _drain(self, worker: WorkerProcess, seconds: float) -> None:
        worker.expect_exit()
        if worker.ready is None:
            await worker.end(patience=0)
            return
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(seconds + _EXIT_SECONDS):
                await self._ask(worker, Drain(seconds=seconds))
        await worker.end(_EXIT_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether every worker takes requests."""
        return all(worker.ready is not None for worker in self._workers)

    def describe(self) -> Ready | None:
        """What the workers serve, once one of them has loaded it."""
        return next((worker.ready for worker in self._workers if worker.ready is not None), None)

    def _worker_of(self, session_id: str) -> WorkerProcess:
        """Rendezvous hash: the same session always meets the same worker."""

        def weight(worker: WorkerProcess) -> bytes:
            return hashlib.blake2b(f"{worker.index}/{session_id}".encode(), digest_size=8).digest()

        return max(self._workers, key=weight)

    async def call(self, request: Append | Cancel | Inspect | Check | Forget) -> Answer:
        """Send one request and wait for its answer; raises what it failed with."""
        return await self._ask(self._worker_of(request.session_id), request)

    async def measure(self, seconds: float) -> Mapping[int, Sequence[Family]]:
        """Ask all workers at once."""
        measured: dict[int, Sequence[Family]] = {}

        async def ask(worker: WorkerProcess) -> None:
            # One that is being started, or too busy to say, is left out.
            with suppress(ServerError, TimeoutError):
                async with asyncio.timeout(seconds):
                    answer = await self._ask(worker, Measure())
                    if isinstance(answer, Measured):
                        measured[worker.index] = answer.families

        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers:
                tasks.create_task(ask(worker))
        return measured

    async def _ask(
        self, worker: WorkerProcess, request: Append | Cancel | Inspect | Check | Forget | Measure | Drain
    ) -> Answer:
        request_id, answers = await worker.request(request)
        try:
            answer = await answers.get()
        finally:
            worker.forget(request_id)
        if isinstance(answer, Failed):
            raise answer.error()
        return answer

    async def stream(self, request: Generate | Resume) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a generation; closing the iterator early interrupts it."""
        worker = self._worker_of(request.session_id)
        request_id, answers = await worker.request(request)
        ended = False
        try:
            while not ended:
                answer = await answers.get()
                match answer:
                    case Failed():
                        ended = True
                        raise answer.error()
                    case GenerationStarted() | GenerationDelta():
                        yield answer
                    case GenerationCompleted():
                        ended = True
                        yield answer
                    case _:
                        raise Internal(f"the worker answered a generation with {answer.kind}")
        finally:
            worker.forget(request_id)
            if not ended:
                cancel = Cancel(session_id=request.session_id, generation_id=request.generation_id, listener=request_id)
                # The worker may be gone, and the generation with it.
                with suppress(ServerError):
                    cancel_id, _ = await worker.request(cancel)
                    worker.forget(cancel_id)
