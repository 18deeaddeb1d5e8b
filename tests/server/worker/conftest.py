"""A worker's parts put together in the test's own process, around the tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.messages import Append, Appended, Generate, GenerationEvent, SamplingParams
from server.settings import load
from server.store.base import SessionRecord
from server.store.embedded import EmbeddedStore
from server.worker.desk import Desk
from server.worker.engine import Engine
from server.worker.journal import Journal
from server.worker.runner import Runner


@dataclass
class Bench:
    """A desk that works, with a single place for resident sessions."""

    desk: Desk
    engine: Engine
    store: EmbeddedStore
    events: list[GenerationEvent] = field(default_factory=list)

    async def create(self, *names: str) -> None:
        """Sessions of these ids, with some text in each."""
        for name in names:
            await self.store.create(
                SessionRecord(id=name, tenant="t", model="m", memory="window", created_at=0.0, updated_at=0.0)
            )
            await self.append(name)

    async def append(self, name: str, text: str = "kelo rati nura seti. ") -> Appended:
        """Text, read."""
        return await self.desk.append(Append(session_id=name, text=text))

    async def generate(self, name: str, generation_id: str, *, count: int = 5, remember: bool = True) -> None:
        """A greedy generation; its events are kept."""
        request = Generate(
            session_id=name,
            generation_id=generation_id,
            prompt="kelo",
            sampling=SamplingParams(max_tokens=count, temperature=0),
            remember=remember,
        )
        await self.desk.generate(request, self.events.append)

    def kinds(self, generation_id: str) -> list[str]:
        """What was sent for a generation, deltas left out."""
        mine = [event.kind for event in self.events if event.generation_id == generation_id]
        return [kind.removeprefix("generation.") for kind in mine if kind != "generation.delta"]


@pytest.fixture
async def bench(tiny_model: Path, tmp_path: Path) -> AsyncGenerator[Bench, None]:
    settings = load(
        model=str(tiny_model),
        memory="window",
        window=32,
        segment=16,
        dtype="float32",
        threads=1,
        resident_sessions=1,
        data_dir=tmp_path / "data",
    )
    runner, store = Runner(settings, 0), EmbeddedStore(settings.data_dir)
    await store.open()
    with ThreadPoolExecutor(1) as compute, ThreadPoolExecutor(1) as reading:
        await asyncio.get_running_loop().run_in_executor(compute, runner.load)
        async with asyncio.TaskGroup() as tasks:

            def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return tasks.create_task(work)

            journal = Journal(store)
            engine = Engine(settings, runner, store, journal, compute, spawn)
            desk = Desk(settings, "test", runner, engine, store, journal, reading)
            steady = [tasks.create_task(work) for work in (journal.run(), engine.run(), desk.write_behind())]
            async with asyncio.timeout(30):
                yield Bench(desk, engine, store)
            for task in steady:
                task.cancel()
    await store.close()
