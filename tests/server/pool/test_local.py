from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from server.errors import NotFound, SessionBusy, Unavailable, WorkerLost
from server.messages import (
    Append,
    Appended,
    Cancel,
    Done,
    Generate,
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    SamplingParams,
)
from server.pairs import OfferSettings
from server.pool.local import LocalPool
from server.settings import Settings, load
from server.store.base import SessionRecord
from server.store.embedded import EmbeddedStore


async def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Poll: what happens in another process sets no event here."""
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Settings:
    return load(
        model=str(tiny_model),
        memory="window",
        window=32,
        segment=16,
        dtype="float32",
        threads=1,
        data_dir=tmp_path / "data",
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncGenerator[EmbeddedStore, None]:
    store = EmbeddedStore(settings.data_dir)
    await store.open()
    for name in ("one", "two"):
        await store.create(
            SessionRecord(id=name, tenant="t", model=settings.model, memory="window", created_at=0.0, updated_at=0.0)
        )
    yield store
    await store.close()


@pytest.fixture
async def pool(settings: Settings, store: EmbeddedStore) -> AsyncGenerator[LocalPool, None]:
    pool = LocalPool(settings)
    await pool.start()
    await until(lambda: pool.ready)
    yield pool
    await pool.stop(1)


def generation(count: int) -> Generate:
    sampling = SamplingParams(max_tokens=count, temperature=2, seed=1)
    return Generate(session_id="one", generation_id="gen", prompt="kelo rati", sampling=sampling)


async def append(pool: LocalPool, session_id: str = "one") -> Appended:
    answer = await pool.call(Append(session_id=session_id, text="kelo rati nura"))
    assert isinstance(answer, Appended)
    return answer


async def test_requests_and_their_answers(pool: LocalPool) -> None:
    described = pool.describe()
    assert described is not None
    assert ([offer.memory for offer in described.offers], described.dtype) == (["window"], "float32")
    answers = await asyncio.gather(append(pool), append(pool, "two"))
    assert answers[0].position == answers[1].position > 0
    events = [event async for event in pool.stream(generation(5))]
    assert isinstance(events[0], GenerationStarted)
    assert isinstance(events[-1], GenerationCompleted)
    assert all(isinstance(event, GenerationDelta) for event in events[1:-1])
    assert events[-1].text == "".join(event.text for event in events[1:-1] if isinstance(event, GenerationDelta))
    assert await pool.call(Cancel(session_id="one", generation_id="gen")) == Done(found=False)
    with pytest.raises(NotFound):
        await append(pool, "unheard-of")


async def test_a_stream_that_is_left_is_cancelled(pool: LocalPool) -> None:
    events = pool.stream(generation(4000))
    assert isinstance(await anext(events), GenerationStarted)
    await events.aclose()
    async with asyncio.timeout(5):
        while await is_busy(pool):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def is_busy(pool: LocalPool) -> bool:
    """Whether the session still generates."""
    try:
        await append(pool)
    except SessionBusy:
        return True
    return False


async def test_a_worker_that_dies_is_replaced(pool: LocalPool) -> None:
    before = (await append(pool)).position
    worker = pool._workers[0]
    assert worker._process is not None
    events = pool.stream(generation(4000))
    assert isinstance(await anext(events), GenerationStarted)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(_exhaust(events), 10)
    with pytest.raises(Unavailable):
        await append(pool)
    await until(lambda: pool.ready)
    assert (await append(pool)).position > before


async def _exhaust(events: AsyncIterator[GenerationEvent]) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize("wrong", ["model", "memory", "offers"])
async def test_hopeless_settings_are_said_once_and_requests_refused(
    settings: Settings, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    changes = {"model": str(tmp_path), "memory": "elephant", "offers": (OfferSettings(memory="elephant"),)}
    said: list[bool] = []
    pool = LocalPool(settings.model_copy(update={wrong: changes[wrong]}), lambda: said.append(True))
    await pool.start()
    with pytest.raises(Unavailable, match="still being loaded"):
        await append(pool)
    await until(lambda: bool(said))
    with pytest.raises(Unavailable, match="cannot be served"):
        await append(pool)
    await pool.stop(1)
    assert said == [True]


async def test_workers_give_their_figures_and_one_that_cannot_is_left_out(pool: LocalPool) -> None:
    await append(pool)
    measured = await pool.measure(5)
    [prefill] = [family for family in measured[0] if family.name == "palimpsest_prefill_tokens"]
    assert sum(point.value for point in prefill.points if point.name.endswith("_total")) > 0
    process = pool._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert await pool.measure(0.2) == {}
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert measured.keys() == (await pool.measure(5)).keys()
