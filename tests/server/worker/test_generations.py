"""A generation that breaks off is gone on with, by whom and whenever: no token sampled twice, none lost, every event once."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import Draining, NotFound, OperationMismatch, PreconditionFailed, SessionBusy
from server.messages import Append, Cancel, Done, Drain, Generate, GenerationCompleted, SamplingParams
from tests.server.worker.conftest import Bench, Work

COUNT = 24
GREEDY = SamplingParams(max_tokens=COUNT, temperature=0)
SEEDED = SamplingParams(max_tokens=COUNT, temperature=1.0, seed=7)
LOGGED = SamplingParams(max_tokens=COUNT, temperature=0, logprobs=1)


def completed(bench: Bench, generation_id: str) -> GenerationCompleted:
    found = [e for e in bench.events if e.generation_id == generation_id and isinstance(e, GenerationCompleted)]
    assert len(found) == 1
    return found[0]


def assert_whole(bench: Bench, generation_id: str) -> str:
    """Every event was heard once and in order; returns the text."""
    deltas = bench.deltas(generation_id)
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    text = "".join(delta.text for delta in deltas)
    assert completed(bench, generation_id).text == text
    return text


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, LOGGED], ids=["greedy", "seeded", "logprobs"])
async def test_one_that_broke_off_goes_on_where_it_stood(bench: Bench, sampling: SamplingParams) -> None:
    await bench.create("twin", "one")
    await bench.generate("twin", "whole", sampling=sampling)
    await bench.generate("one", "gen", sampling=sampling, break_off_after=3)
    assert bench.kinds("gen") == ["started"]
    stood = await bench.position("one")
    await bench.resume("one", "gen", after=bench.deltas("gen")[-1].index + 1)
    assert await bench.position("one") == await bench.position("twin") > stood
    assert assert_whole(bench, "gen") == completed(bench, "whole").text
    assert completed(bench, "gen").completion_tokens == COUNT
    assert completed(bench, "gen").context_tokens == completed(bench, "whole").context_tokens


async def test_another_worker_goes_on_with_one_after_a_crash(work: Work) -> None:
    async with work() as first:
        await first.create("twin", "one")
        await first.generate("twin", "whole", sampling=SEEDED)
        await first.generate("one", "gen", sampling=SEEDED, break_off_after=3)
        text = completed(first, "whole").text
    async with work() as second:
        await second.resume("one", "gen")
        assert second.kinds("gen") == ["started", "completed"]
        assert assert_whole(second, "gen") == text


async def test_one_that_ended_is_told_again_without_sampling(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "gen", sampling=GREEDY)
    first, position = list(bench.events), await bench.position("one")
    bench.events.clear()
    await bench.resume("one", "gen")
    assert [event.model_copy(update={"etag": None}) for event in first if isinstance(event, GenerationCompleted)] == [
        completed(bench, "gen")
    ]
    assert bench.events[:-1] == first[:-1]
    bench.events.clear()
    await bench.resume("one", "gen", after=2)
    assert bench.events[:-1] == first[3:-1]
    assert await bench.position("one") == position


async def test_a_stop_string_ends_it_alike_when_told_again(bench: Bench) -> None:
    await bench.create("twin", "one")
    await bench.generate("twin", "whole", sampling=GREEDY)
    stop = completed(bench, "whole").text[5:8]
    await bench.generate("one", "gen", sampling=GREEDY.model_copy(update={"stop": (stop,)}))
    first = list(bench.events)
    assert completed(bench, "gen").finish_reason == "stop"
    bench.events.clear()
    await bench.resume("one", "gen")
    assert bench.events[:-1] == [event for event in first[:-1] if event.generation_id == "gen"]
    assert completed(bench, "gen").text == assert_whole(bench, "gen")


async def test_a_cancelled_one_stays_cancelled(bench: Bench) -> None:
    await bench.create("one")
    running = asyncio.ensure_future(bench.generate("one", "gen", count=2000))
    await bench.heard("gen", 3)
    assert await bench.desk.cancel(Cancel(session_id="one", generation_id="gen")) == Done()
    await running
    first, position = list(bench.events), await bench.position("one")
    assert completed(bench, "gen").position == position
    bench.events.clear()
    await bench.resume("one", "gen")
    assert bench.events[:-1] == first[:-1]
    assert completed(bench, "gen").finish_reason == "cancelled"
    assert await bench.position("one") == position


async def test_one_that_broke_off_can_be_cancelled_for_good(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "gen", sampling=GREEDY, break_off_after=3)
    position = await bench.position("one")
    assert await bench.desk.cancel(Cancel(session_id="one", generation_id="gen")) == Done()
    assert await bench.desk.cancel(Cancel(session_id="one", generation_id="gen")) == Done(found=False)
    bench.events.clear()
    await bench.resume("one", "gen")
    assert completed(bench, "gen").finish_reason == "cancelled"
    assert completed(bench, "gen").position == await bench.position("one") == position


async def test_asking_for_more_than_there_is_tells_the_end(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "gen", sampling=GREEDY)
    bench.events.clear()
    async with asyncio.timeout(5):
        await bench.resume("one", "gen", after=1000)
    assert bench.kinds("gen") == ["completed"]


async def test_one_that_a_shutdown_broke_off_goes_on_elsewhere(work: Work) -> None:
    async with work("one") as one:
        await one.create("twin", "it")
        await one.generate("twin", "whole", count=300)
        running = asyncio.ensure_future(one.generate("it", "gen", count=300))
        await one.heard("gen", 3)
        await one.desk.drain(Drain(seconds=0))
        with pytest.raises(Draining):
            await running
        after, text = len(one.deltas("gen")), completed(one, "whole").text
        begun = "".join(delta.text for delta in one.deltas("gen"))
    async with work("two") as two:
        await two.resume("it", "gen", after=after)
        assert begun + "".join(delta.text for delta in two.deltas("gen")) == text == completed(two, "gen").text


async def test_one_whose_session_has_moved_on_ends_as_cancelled(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "gen", sampling=GREEDY, break_off_after=3)
    position = (await bench.append("one")).position
    for _ in range(2):
        bench.events.clear()
        await bench.resume("one", "gen")
        assert completed(bench, "gen").finish_reason == "cancelled"
        assert_whole(bench, "gen")
        assert await bench.position("one") == position


async def test_whoever_comes_last_is_told_the_rest(bench: Bench) -> None:
    await bench.create("twin", "one")
    await bench.generate("twin", "whole", count=200)
    first = asyncio.ensure_future(bench.generate("one", "gen", count=200))
    await bench.heard("gen", 3)
    second = asyncio.ensure_future(bench.resume("one", "gen", after=len(bench.deltas("gen"))))
    with pytest.raises(SessionBusy) as moved:
        await first
    assert moved.value.code == "stream_moved"
    # The first one's end is noticed only now: that must not stop the second.
    await bench.desk.cancel(Cancel(session_id="one", generation_id="gen", listener=2))
    await second
    assert assert_whole(bench, "gen") == completed(bench, "whole").text


async def test_a_repeat_gets_the_first_generation(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "gen", op_id="ask", break_off_after=3)
    await bench.generate("one", "never", op_id="ask")
    assert bench.kinds("never") == []
    whole, position = completed(bench, "gen"), await bench.position("one")
    bench.events.clear()
    await bench.generate("one", "never", op_id="ask")
    assert completed(bench, "gen") == whole.model_copy(update={"etag": None})
    assert await bench.position("one") == position


async def test_an_operation_id_stands_for_one_request(bench: Bench) -> None:
    await bench.create("one")
    await bench.append("one", op_id="append")
    await bench.generate("one", "gen", op_id="ask")
    with pytest.raises(OperationMismatch):
        await bench.generate("one", "other", op_id="ask", count=6)
    with pytest.raises(OperationMismatch):
        await bench.generate("one", "other", op_id="append")
    with pytest.raises(OperationMismatch):
        await bench.append("one", op_id="ask")
    assert (await bench.append("one")).applied


async def test_a_question_without_a_trace_is_told_again_only_by_its_operation_id(bench: Bench) -> None:
    await bench.create("one")
    before = await bench.store.head("one")
    await bench.generate("one", "gen", remember=False, op_id="ask")
    first = list(bench.events)
    assert await bench.store.head("one") == before
    await bench.append("one")
    bench.events.clear()
    await bench.generate("one", "never", remember=False, op_id="ask")
    assert bench.events == first
    await bench.generate("one", "other", remember=False)
    with pytest.raises(NotFound):
        await bench.resume("one", "other")


async def test_what_does_not_match_changes_nothing(bench: Bench) -> None:
    await bench.create("one")
    record = await bench.store.head("one")
    answer = await bench.desk.append(Append(session_id="one", text="kelo", if_match=frozenset({record.etag})))
    newest = await bench.store.head("one")
    assert answer.etag == newest.etag != record.etag
    stale = frozenset({record.etag})
    with pytest.raises(PreconditionFailed):
        await bench.desk.append(Append(session_id="one", text="kelo", if_match=stale))
    for remember in (True, False):
        request = Generate(session_id="one", generation_id="gen", sampling=GREEDY, remember=remember, if_match=stale)
        with pytest.raises(PreconditionFailed):
            await bench.desk.generate(request, bench.events.append, 99)
    assert await bench.store.head("one") == newest
    assert bench.events == []
    await bench.generate("one", "gen")
    assert completed(bench, "gen").etag == (await bench.store.head("one")).etag
