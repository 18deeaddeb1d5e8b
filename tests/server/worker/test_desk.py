from __future__ import annotations

import asyncio

import pytest

from server.errors import Draining, InvalidRequest, NotFound, SessionBusy
from server.messages import Append, Cancel, Check, Done, Drain, Forget, GenerationCompleted
from tests.server.worker.conftest import Bench

LONG = "kelo rati nura seti. " * 400


def completed(bench: Bench, generation_id: str) -> GenerationCompleted:
    found = [event for event in bench.events if event.generation_id == generation_id]
    assert isinstance(found[-1], GenerationCompleted)
    return found[-1]


@pytest.mark.parametrize("remember", [True, False])
async def test_a_generation_cancelled_before_it_began_ends_at_once(bench: Bench, remember: bool) -> None:
    await bench.create("one")
    position = (await bench.append("one")).position
    await bench.desk.append(Append(session_id="one", text=LONG, wait="journal"))
    generating = asyncio.ensure_future(bench.generate("one", "gen", count=2000, remember=remember))
    await asyncio.sleep(0)
    assert await bench.desk.cancel(Cancel(session_id="one", generation_id="gen")) == Done()
    await asyncio.wait_for(generating, 10)
    assert bench.kinds("gen") == ["started", "completed"]
    assert completed(bench, "gen").finish_reason == "cancelled"
    assert completed(bench, "gen").completion_tokens == 0
    assert (await bench.append("one")).position > position


async def test_questions_that_share_one_place_are_all_answered(bench: Bench) -> None:
    names = ["one", "two", "three"]
    await bench.create(*names)
    await asyncio.gather(*(bench.generate(name, f"gen-{name}", remember=False) for name in names))
    for name in names:
        assert bench.kinds(f"gen-{name}") == ["started", "completed"]
        assert completed(bench, f"gen-{name}").text == completed(bench, "gen-one").text


async def test_cancelling_an_ended_generation_spares_the_next(bench: Bench) -> None:
    await bench.create("one")
    await bench.generate("one", "first")
    running = asyncio.ensure_future(bench.generate("one", "second", count=30))
    await asyncio.sleep(0)
    assert await bench.desk.cancel(Cancel(session_id="one", generation_id="first")) == Done(found=False)
    await running
    assert completed(bench, "second").finish_reason != "cancelled"


async def test_a_deleted_session_leaves_nobody_waiting(bench: Bench) -> None:
    await bench.create("one", "two")
    await bench.desk.append(Append(session_id="one", text=LONG, wait="journal"))
    waiting = [asyncio.ensure_future(bench.append("one", LONG)) for _ in range(4)]
    waiting += [asyncio.ensure_future(bench.append("one", "kelo")) for _ in range(4)]
    asking = [asyncio.ensure_future(bench.generate("one", f"gen{n}", remember=n % 2 == 0)) for n in range(4)]
    await asyncio.sleep(0.05)
    await bench.store.delete("t", "one")
    await bench.desk.forget(Forget(session_id="one"))
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, *asking, return_exceptions=True), 10)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert refused
    assert all(isinstance(error, NotFound | SessionBusy) for error in refused)
    assert (await bench.append("two")).position > 0


async def test_a_session_taken_over_by_another_is_read_anew(bench: Bench) -> None:
    await bench.create("one", "two")
    before = (await bench.append("one")).position
    await bench.store.acquire("one", "test/0/two", 5.0)
    taken = await bench.append("one")
    assert taken.position > before
    assert (await bench.store.head("one")).position == taken.position


async def test_draining_saves_everything_and_ends_what_waits(bench: Bench) -> None:
    await bench.create("one")
    waiting = asyncio.ensure_future(bench.append("one", LONG))
    while (await bench.store.head("one")).journaled < 1000:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    generating = asyncio.ensure_future(bench.generate("one", "gen", count=2000))
    await asyncio.sleep(0)
    await bench.desk.drain(Drain(seconds=0))
    assert isinstance((await asyncio.gather(waiting, generating, return_exceptions=True))[0], Draining)
    stored = await bench.store.load("one")
    assert stored.snapshot is not None
    assert stored.snapshot_position + len(stored.tail) == stored.record.journaled
    with pytest.raises(Draining):
        await bench.append("one")


async def test_a_state_from_outside_is_checked(bench: Bench) -> None:
    await bench.create("one")
    await bench.append("one", LONG)
    assert await bench.engine.moves.snapshot(bench.engine.sessions["one"])
    stored = await bench.store.load("one")
    pair = bench.runners.default.offered.pair
    sound = Check(
        session_id="other",
        model=pair.model,
        memory=pair.memory,
        position=stored.snapshot_position,
        state=stored.snapshot,
        tail=(1, 2, 3),
    )
    assert await bench.desk.check(sound) == Done()
    assert await bench.desk.check(sound.model_copy(update={"position": 0, "state": None})) == Done()
    assert stored.snapshot is not None
    for change in (
        {"position": stored.snapshot_position + 1},
        {"state": stored.snapshot[:-1]},
        {"state": b"PLMP"},
        {"tail": (1, 1 << 24)},
        {"tail": (-1,)},
    ):
        with pytest.raises(InvalidRequest) as refused:
            await bench.desk.check(sound.model_copy(update=change))
        assert refused.value.code == "import_refused"
