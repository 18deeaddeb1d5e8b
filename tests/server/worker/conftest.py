"""A worker's parts put together in the test's own process, around the tiny model."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from server.messages import Append, Appended, Cancel, Generate, GenerationDelta, GenerationEvent, Resume, SamplingParams
from server.pairs import Pair
from server.settings import Settings, load
from server.store.base import SessionRecord
from server.store.embedded import EmbeddedStore
from server.worker.desk import Desk
from server.worker.engine import Engine
from server.worker.holding import Holdings
from server.worker.intake import Intakes
from server.worker.journal import Journal
from server.worker.metrics import WorkerMetrics
from server.worker.runners import Runners


@dataclass
class Bench:
    """A desk that works, with a single place for resident sessions."""

    desk: Desk
    engine: Engine
    runners: Runners
    store: EmbeddedStore
    metrics: WorkerMetrics
    events: list[GenerationEvent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: Callable[[], int] = field(default_factory=lambda: count(1).__next__)

    async def create(self, *names: str, pair: Pair | None = None) -> None:
        """Sessions of these ids with some text in each, of the default pair unless said otherwise."""
        pair = pair or self.runners.default.offered.pair
        for name in names:
            await self.store.create(
                SessionRecord(id=name, tenant="t", model=pair.model, memory=pair.memory, created_at=0.0, updated_at=0.0)
            )
            await self.append(name)

    async def append(self, name: str, text: str = "kelo rati nura seti. ", op_id: str | None = None) -> Appended:
        """Text, read."""
        return await self.desk.append(Append(session_id=name, text=text, op_id=op_id))

    async def generate(
        self,
        name: str,
        generation_id: str,
        *,
        count: int = 5,
        remember: bool = True,
        op_id: str | None = None,
        sampling: SamplingParams | None = None,
        break_off_after: int | None = None,
    ) -> None:
        """A generation, greedy unless said otherwise; its events are kept. Nobody listens any more after so many deltas."""
        request = Generate(
            session_id=name,
            generation_id=generation_id,
            prompt="kelo",
            sampling=sampling or SamplingParams(max_tokens=count, temperature=0),
            remember=remember,
            op_id=op_id,
        )
        listener = self.listeners()
        await self.desk.generate(request, self._ear(generation_id, listener, break_off_after), listener)

    async def resume(
        self, name: str, generation_id: str, after: int = -1, *, break_off_after: int | None = None
    ) -> None:
        """The rest of a generation; its events are kept."""
        listener = self.listeners()
        request = Resume(session_id=name, generation_id=generation_id, after=after)
        await self.desk.resume(request, self._ear(generation_id, listener, break_off_after), listener)

    def _ear(self, generation_id: str, listener: int, break_off_after: int | None) -> Callable[[GenerationEvent], None]:
        heard = 0

        def hear(event: GenerationEvent) -> None:
            nonlocal heard
            if break_off_after is not None and heard > break_off_after:
                return  # sent before it was known that nobody listens
            self.events.append(event)
            self.news.set()
            heard += isinstance(event, GenerationDelta)
            if heard == break_off_after:
                heard += 1
                gone = Cancel(session_id="", generation_id=generation_id, listener=listener)
                task = asyncio.ensure_future(self.desk.cancel(gone))
                task.add_done_callback(lambda done: done.result())

        return hear

    async def heard(self, generation_id: str, deltas: int) -> None:
        """Wait until so many deltas were sent for a generation."""
        while len(self.deltas(generation_id)) < deltas:
            self.news.clear()
            await self.news.wait()

    def kinds(self, generation_id: str) -> list[str]:
        """What was sent for a generation, deltas left out."""
        mine = [event.kind for event in self.events if event.generation_id == generation_id]
        return [kind.removeprefix("generation.") for kind in mine if kind != "generation.delta"]

    def deltas(self, generation_id: str) -> list[GenerationDelta]:
        """The deltas that were sent for a generation."""
        return [e for e in self.events if isinstance(e, GenerationDelta) and e.generation_id == generation_id]

    async def position(self, name: str) -> int:
        """Where the store says the session stands."""
        return (await self.store.head(name)).position


Work = Callable[..., AbstractAsyncContextManager[Bench]]


@asynccontextmanager
async def working(settings: Settings, owner: str, *, holding: bool = True) -> AsyncIterator[Bench]:
    """A worker at work until the block ends, which is like its death: nothing is drained. Without `holding` it neither renews its
    leases nor hears what others want, like one that stands still."""
    runners, store = Runners(settings, 0), EmbeddedStore(settings.data_dir)
    await store.open()
    with ThreadPoolExecutor(1) as compute, ThreadPoolExecutor(1) as moving, ThreadPoolExecutor(1) as reading:
        await asyncio.get_running_loop().run_in_executor(compute, runners.load)
        async with asyncio.TaskGroup() as tasks:

            def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return tasks.create_task(work)

            journal = Journal(store)
            metrics = WorkerMetrics()
            engine = Engine(settings, runners, store, journal, compute, moving, spawn, metrics)
            holdings = Holdings(settings, owner, engine, runners, store, spawn)
            intakes = Intakes(settings, engine, store, journal, reading)
            desk = Desk(settings, runners, engine, store, journal, holdings, intakes)
            works = [journal.run(), engine.run(), desk.write_behind()]
            if holding:
                works += [holdings.keep(), holdings.listen()]
            steady = [tasks.create_task(work) for work in works]
            async with asyncio.timeout(60):
                yield Bench(desk, engine, runners, store, metrics)
            for task in steady:
                task.cancel()
    await store.close()


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Settings:
    """A worker with room for one resident session."""
    return load(
        model=str(tiny_model),
        memory="window",
        window=32,
        segment=16,
        dtype="float32",
        threads=1,
        resident_sessions=1,
        lease_seconds=1.5,
        lease_wait_seconds=1.0,
        data_dir=tmp_path / "data",
    )


@pytest.fixture
def work(settings: Settings) -> Work:
    """Starts a worker of a server, a new incarnation each time."""

    def start(server: str = "test", *, holding: bool = True) -> AbstractAsyncContextManager[Bench]:
        return working(settings, f"{server}/0/{secrets.token_hex(4)}", holding=holding)

    return start


@pytest.fixture
async def bench(work: Work) -> AsyncGenerator[Bench, None]:
    async with work() as bench:
        yield bench
