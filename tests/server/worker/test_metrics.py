"""What a worker says of itself is what it did."""

from __future__ import annotations

import asyncio

from server.messages import Append
from server.metrics import ServiceMetrics
from tests.server.figures import Page
from tests.server.worker.conftest import Bench


def figures(bench: Bench) -> Page:
    return Page(ServiceMetrics(workers=1).page({0: bench.metrics.measured().families}, "")[0].decode())


async def test_tokens_are_counted_as_given_or_sampled(bench: Bench) -> None:
    await bench.create("one")
    read = figures(bench)
    folded = bench.engine.sessions["one"].folded
    assert read("palimpsest_prefill_tokens_total") == folded > 3
    assert read("palimpsest_decode_tokens_total") == 0
    assert read("palimpsest_inter_token_latency_seconds_count") == 0
    await bench.generate("one", "gen", count=6)
    [completed] = [event for event in bench.events if event.kind == "generation.completed"]
    found = figures(bench)
    assert found("palimpsest_decode_tokens_total") == completed.completion_tokens > 1
    assert found("palimpsest_inter_token_latency_seconds_count") == completed.completion_tokens - 1
    assert found("palimpsest_prefill_tokens_total") == folded + completed.prompt_tokens
    await bench.append("one")
    assert figures(bench)("palimpsest_prefill_tokens_total") > folded + completed.prompt_tokens
    assert found("palimpsest_batch_sessions_count") >= completed.completion_tokens
    assert found("palimpsest_compute_seconds_total") > 0


async def test_coming_and_going_is_timed(bench: Bench) -> None:
    await bench.create("one")
    assert figures(bench)("palimpsest_resident_sessions") == 1
    assert figures(bench)("palimpsest_restore_seconds_count") == 1
    assert figures(bench)("palimpsest_snapshot_seconds_count") == 0
    await bench.create("two")
    found = figures(bench)
    assert found("palimpsest_snapshot_seconds_count") == 1, "there is one place only"
    assert found("palimpsest_restore_seconds_count") == 2
    assert found("palimpsest_resident_sessions") == 1
    assert found("palimpsest_resident_session_limit") == 1


async def test_what_is_under_way_shows(bench: Bench) -> None:
    await bench.create("one")
    quiet = figures(bench)
    for name in ("queued_sessions", "running_generations", "reading_sessions"):
        assert quiet(f"palimpsest_{name}") == 0
    generating = asyncio.ensure_future(bench.generate("one", "gen", count=30))
    await bench.heard("gen", 1)
    assert figures(bench)("palimpsest_running_generations") == 1
    await generating
    await bench.desk.append(Append(session_id="one", text="kelo rati nura seti. " * 400, wait="journal"))
    assert figures(bench)("palimpsest_reading_sessions") == 1
    await bench.append("one")
    assert figures(bench)("palimpsest_reading_sessions") == 0


async def test_those_who_wait_for_a_place_are_counted(bench: Bench) -> None:
    await bench.create("one", "two")
    generating = asyncio.ensure_future(bench.generate("two", "gen", count=30))
    await bench.heard("gen", 1)
    await bench.desk.append(Append(session_id="one", text="kelo", wait="journal"))
    assert figures(bench)("palimpsest_queued_sessions") == 1
    await generating
    await bench.append("one")
    assert figures(bench)("palimpsest_queued_sessions") == 0
