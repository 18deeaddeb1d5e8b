"""The worker process: `python -m server.worker INDEX ENDPOINT`, settings in the environment, started by the local pool.

Its standard input is a pipe that the parent holds open and never writes to: when it ends, the parent is gone, and so is the worker.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import zmq
import zmq.asyncio

from server.errors import ServerError
from server.logs import configure_logs
from server.messages import (
    Answer,
    Append,
    Cancel,
    Check,
    Drain,
    Failed,
    Forget,
    Generate,
    GenerationEvent,
    Inspect,
    Measure,
    Request,
    Resume,
    pack,
    unpack_request,
)
from server.settings import Settings, load
from server.store.factory import create_store
from server.worker.desk import Desk
from server.worker.engine import Engine
from server.worker.holding import Holdings
from server.worker.intake import Intakes
from server.worker.journal import Journal
from server.worker.metrics import WorkerMetrics
from server.worker.runners import LOADING_ERRORS, Runners

CANNOT_SERVE = 78
"""Exit code when model and settings do not fit (EX_CONFIG): starting again would not help."""

log = structlog.get_logger()


class Worker:
    """Wires the parts together and speaks with the service."""

    def __init__(self, settings: Settings, index: int, endpoint: str) -> None:
        self._settings, self._index, self._endpoint = settings, index, endpoint
        self._metrics = WorkerMetrics()
        self._store = self._metrics.store_errors.counted(create_store(settings))
        self._runners = Runners(settings, index)
        self._compute = ThreadPoolExecutor(1, "compute", initializer=self._runners.bind_thread)
        self._moving = ThreadPoolExecutor(1, "moving", initializer=self._runners.bind_mover)
        self._reading = ThreadPoolExecutor(1, "reading")
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()

    async def run(self) -> None:
        """Serve until drained."""
        await asyncio.get_running_loop().run_in_executor(self._compute, self._runners.load)
        await self._store.open()
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"worker-{self._index}".encode())
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(self._endpoint)
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks, socket)
        finally:
            await self._store.close()
            socket.close()
            context.term()

    async def _serve(self, tasks: asyncio.TaskGroup, socket: zmq.asyncio.Socket) -> None:
        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return tasks.create_task(work)

        journal = Journal(self._store)
        engine = Engine(
            self._settings, self._runners, self._store, journal, self._compute, self._moving, spawn, self._metrics
        )
        owner = f"{self._settings.server_id}/{self._index}/{secrets.token_hex(4)}"
        holdings = Holdings(self._settings, owner, engine, self._runners, self._store, spawn)
        intakes = Intakes(self._settings, engine, self._store, journal, self._reading)
        self._desk = Desk(self._settings, self._runners, engine, self._store, journal, holdings, intakes)
        steady = [
            tasks.create_task(work)
            for work in (
                journal.run(),
                engine.run(),
                holdings.keep(),
                holdings.listen(),
                self._desk.write_behind(),
                self._send(socket),
            )
        ]
        self._answer(0, self._runners.describe())
        while True:
            request_id, request = unpack_request(await socket.recv())
            if isinstance(request, Drain):
                await self._handle(request_id, request)
                break
            spawn(self._handle(request_id, request))
        await self._outbox.join()
        for task in steady:
            task.cancel()

    async def _send(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await socket.send(await self._outbox.get())
            self._outbox.task_done()

    def _answer(self, request_id: int, answer: Answer) -> None:
        self._outbox.put_nowait(pack(request_id, answer))

    async def _handle(self, request_id: int, request: Request) -> None:
        try:
            answer = await self._dispatch(request_id, request)
        except Exception as error:
            if not isinstance(error, ServerError):
                log.exception("request failed", request=request.kind)
            answer = Failed.of(error)
        if answer is not None:
            self._answer(request_id, answer)

    async def _dispatch(self, request_id: int, request: Request) -> Answer | None:
        def emit(event: GenerationEvent) -> None:
            self._answer(request_id, event)

        match request:
            case Append():
                return await self._desk.append(request)
            case Generate():
                await self._desk.generate(request, emit, request_id)
                return None
            case Resume():
                await self._desk.resume(request, emit, request_id)
                return None
            case Cancel():
                return await self._desk.cancel(request)
            case Inspect():
                return await self._desk.inspect(request)
            case Check():
                return await self._desk.check(request)
            case Forget():
                return await self._desk.forget(request)
            case Measure():
                return self._metrics.measured()
            case Drain():
                return await self._desk.drain(request)


def _die_with_parent() -> None:
    # Not through sys.stdin: a thread that waits in it holds a lock which the interpreter's own end needs.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def main() -> None:
    """Entry point."""
    settings = load()
    configure_logs(settings)
    index, endpoint = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_die_with_parent, name="lifeline", daemon=True).start()
    try:
        asyncio.run(Worker(settings, index, endpoint).run())
    except* LOADING_ERRORS as group:
        for error in group.exceptions:
            log.error("cannot serve this model", reason=str(error))
        sys.exit(CANNOT_SERVE)


if __name__ == "__main__":
    main()
