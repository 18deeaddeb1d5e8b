"""Generations that run here, and those that are remembered and may be taken up again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from server.admission import Admission
from server.catalog import offer_of
from server.errors import Internal, NotFound
from server.ids import is_id
from server.messages import Cancel, Done, Generate, GenerationEvent, Resume
from server.pool.base import Pool
from server.store.base import GenerationRecord, Store
from server.workload import Workload

Events = AsyncGenerator[GenerationEvent, None]


@dataclass(frozen=True, eq=False)
class Running:
    """Whose a running generation is."""

    tenant: str
    session_id: str


class Generations:
    """Follows generations, and finds them by id for whoever would cancel or resume one."""

    def __init__(self, pool: Pool, store: Store, workload: Workload, admission: Admission) -> None:
        self._pool = pool
        self._store = store
        self._workload, self._admission = workload, admission
        self._running: dict[str, Running] = {}

    async def follow(self, tenant: str, request: Generate | Resume) -> Events:
        """The events of a generation. Closing the generator interrupts it."""
        running, name = Running(tenant, request.session_id), request.generation_id
        self._running[name] = running
        try:
            # The one place where a generation is interrupted: leaving this block early.
            with self._workload.at_work(), self._admission.place(tenant):
                async with aclosing(self._pool.stream(request)) as events:
                    async for event in events:
                        if event.generation_id != name:
                            # A repeat is told under the id of the first.
                            self._let_go(name, running)
                            name = event.generation_id
                            self._running[name] = running
                        yield event
        finally:
            self._let_go(name, running)

    def _let_go(self, name: str, running: Running) -> None:
        # Somebody else may follow the same generation by now.
        if self._running.get(name) is running:
            del self._running[name]

    async def cancel(self, tenant: str, generation_id: str) -> None:
        """End for good one that has not ended. Raises `NotFound` if it has, or if the worker knows nothing to stop."""
        running = self._running.get(generation_id)
        if running is not None and running.tenant == tenant:
            session_id = running.session_id
        else:
            record = await self.recorded(tenant, generation_id)
            if record.finish is not None:
                raise no_generation()
            session_id = record.session_id
        answer = await self._pool.call(Cancel(session_id=session_id, generation_id=generation_id))
        if not isinstance(answer, Done):
            raise Internal(f"a worker answered a cancel with {answer.kind}")
        if not answer.found:
            raise no_generation()

    async def recorded(self, tenant: str, generation_id: str) -> GenerationRecord:
        """A remembered generation. Raises `NotFound`, also for another tenant's, and `ModelNotServed`."""
        record = await self._store.generation(generation_id) if is_id("gen", generation_id) else None
        if record is None:
            raise no_generation()
        try:
            session = await self._store.get(tenant, record.session_id)
        except NotFound:
            raise no_generation() from None
        if (served := self._pool.describe()) is not None:  # without one the pool itself will say so
            offer_of(served, session)
        return record


def no_generation() -> NotFound:
    """The error for a generation that never was, has expired, is another tenant's, or left no trace."""
    return NotFound(
        "there is no such generation to take up or to cancel: it may have ended, been forgotten after a day, or been asked "
        "with remember=false, which leaves no trace; the session's position tells what was kept",
        param="generation_id",
    )
