"""Figures of several processes on one page."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.errors import NotFound, StoreUnavailable
from server.messages import GenerationDelta, GenerationEvent, GenerationStarted
from server.metrics import ServiceMetrics, families
from server.store.embedded import EmbeddedStore
from tests.server.figures import Page
from tests.server.routes.outages import broken


def page(metrics: ServiceMetrics) -> Page:
    return Page(metrics.page({}, "")[0].decode())


def test_figures_of_workers_are_joined_by_name() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    for number, registry in enumerate(registries):
        Counter("palimpsest_prefill_tokens", "Tokens.", registry=registry).inc(10 + number)
        Gauge("palimpsest_resident_sessions", "Sessions.", registry=registry).set(number)
        Histogram("palimpsest_snapshot_seconds", "Time.", buckets=(0.1, 1), registry=registry).observe(0.5)
    measured = {index: families(registry) for index, registry in enumerate(registries)}
    text, content_type = ServiceMetrics(workers=3).page(measured, "")
    assert content_type.startswith("text/plain")
    found = Page(text.decode())
    assert found("palimpsest_prefill_tokens_total", process="worker-1") == 11
    assert found("palimpsest_prefill_tokens_total") == 21
    assert found("palimpsest_resident_sessions", process="worker-0") == 0
    assert found("palimpsest_snapshot_seconds_bucket", process="worker-0", le="0.1") == 0
    assert found("palimpsest_snapshot_seconds_bucket", process="worker-0", le="1.0") == 1
    assert found("palimpsest_workers") == 3
    assert found("palimpsest_workers_ready") == 2
    assert found("process_resident_memory_bytes", process="http") > 2**20


async def test_what_a_store_cannot_do_is_counted_by_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, plain = ServiceMetrics(workers=1), EmbeddedStore(tmp_path)
    store = metrics.store_errors.counted(plain)
    await store.open()
    with pytest.raises(NotFound):
        await store.get("tenant", "sess_one")
    assert store.durability == "fsync"
    monkeypatch.setattr(plain, "get", broken(plain.get, done=False))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.get("tenant", "sess_one")
    refused: list[Exception | str] = [StoreUnavailable("full"), StoreUnavailable("full"), "1-00000000"]

    async def journal(_entries: object) -> list[Exception | str]:
        return refused

    monkeypatch.setattr(plain, "journal", journal)
    assert await store.journal([]) == refused
    found = page(metrics)
    assert found("palimpsest_store_errors_total", operation="get", process="http") == 2
    assert found("palimpsest_store_errors_total", operation="journal") == 2
    assert found("palimpsest_store_errors_total") == 4
    await store.close()


async def test_the_first_text_of_each_generation_is_timed_once() -> None:
    metrics = ServiceMetrics(workers=1)

    async def events(texts: int) -> AsyncGenerator[GenerationEvent, None]:
        yield GenerationStarted(generation_id="gen", prompt_tokens=1)
        for index in range(texts):
            yield GenerationDelta(generation_id="gen", index=index, text="a")

    assert len([event async for event in metrics.timed(events(3))]) == 4
    assert len([event async for event in metrics.timed(events(0))]) == 1
    assert page(metrics)("palimpsest_time_to_first_token_seconds_count") == 1


async def test_events_that_nobody_wants_any_more_are_closed() -> None:
    closed = False

    async def events() -> AsyncGenerator[GenerationEvent, None]:
        nonlocal closed
        try:
            while True:
                yield GenerationDelta(generation_id="gen", index=0, text="a")
        finally:
            closed = True

    timed = ServiceMetrics(workers=1).timed(events())
    await anext(timed)
    await timed.aclose()
    assert closed
