"""Sessions of several pairs side by side, in a worker that has one row for each pair."""

from __future__ import annotations

import asyncio

import pytest

from models.state import MemoryState
from server.errors import ModelNotServed, Overloaded
from server.messages import Append, Check, GenerationCompleted, Inspect
from server.pairs import Pair
from server.settings import Settings
from server.worker.runner import Runner
from tests.server.worker.conftest import Bench, Work, working

OPTIONS = {"heads": [[1, 0], [2, 1]], "slots": 8}
SLOTS = {"memory": "slots", "options": OPTIONS}
TEXT = "kelo rati nura seti. " * 12


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "offers": [SLOTS]})


@pytest.fixture
def pairs(settings: Settings) -> list[Pair]:
    return [served.pair for served in settings.pairs()]


def text_of(bench: Bench, generation_id: str) -> str:
    found = [event for event in bench.events if event.generation_id == generation_id]
    assert isinstance(found[-1], GenerationCompleted)
    return found[-1].text


def turned_round(settings: Settings) -> Settings:
    """The same pairs, the other one first."""
    return Settings(
        **{**settings.model_dump(), "memory": "slots", "memory_options": OPTIONS, "offers": [settings.memory]}
    )


async def answers(bench: Bench, names: list[str], turn: int, *, together: bool) -> list[str]:
    """What each says next, asked all at once or one after another."""
    ids = [f"gen-{name}-{turn}-{together}" for name in names]
    work = [bench.generate(name, gen, count=8) for name, gen in zip(names, ids, strict=True)]
    if together:
        await asyncio.gather(*work)
    else:
        for one in work:
            await one
    return [text_of(bench, gen) for gen in ids]


async def test_sessions_of_several_pairs_run_together_as_if_alone(bench: Bench, pairs: list[Pair]) -> None:
    for pair in pairs:
        for number in range(2):  # two for one row each: they take turns
            for place in ("together", "alone"):
                name = f"{pair.memory}-{number}-{place}"
                await bench.create(name, pair=pair)
                await bench.append(name, TEXT[number:])
    sides = [[f"{pair.memory}-{n}-{place}" for pair in pairs for n in range(2)] for place in ("together", "alone")]
    for turn in range(2):
        side_by_side = await answers(bench, sides[0], turn, together=True)
        assert side_by_side == await answers(bench, sides[1], turn, together=False)
    assert [await bench.position(name) for name in sides[0]] == [await bench.position(name) for name in sides[1]]


async def test_a_full_pair_sends_none_of_another_away(bench: Bench, pairs: list[Pair]) -> None:
    window, slots = pairs
    await bench.create("stays", pair=slots)
    await bench.create("one", "two", "three", pair=window)
    assert bench.engine.sessions["stays"].row is not None
    resident = [name for name, session in bench.engine.sessions.items() if session.row is not None]
    assert resident == ["stays", "three"]


async def test_a_question_without_trace_borrows_the_row_of_its_own_pair(bench: Bench, pairs: list[Pair]) -> None:
    for pair in pairs:
        await bench.create(pair.memory, pair=pair)
    asked = [bench.generate(pair.memory, f"ask-{pair.memory}", remember=False) for pair in pairs]
    await asyncio.gather(*asked)
    for pair in pairs:
        before = await bench.position(pair.memory)
        await bench.generate(pair.memory, f"say-{pair.memory}")
        assert text_of(bench, f"say-{pair.memory}") == text_of(bench, f"ask-{pair.memory}")
        assert await bench.position(pair.memory) > before


async def test_each_answer_names_its_own_pair(bench: Bench, pairs: list[Pair]) -> None:
    sizes = []
    for pair in pairs:
        await bench.create(pair.memory, pair=pair)
        appended = await bench.append(pair.memory, op_id="a")
        inspected = await bench.desk.inspect(Inspect(session_id=pair.memory))
        repeated = await bench.append(pair.memory, op_id="a")
        assert inspected.memory == pair.memory
        assert inspected.state_bytes == appended.state_bytes == repeated.state_bytes
        sizes.append(appended.state_bytes)
    assert sizes[0] < sizes[1]


async def test_a_session_of_another_pair_is_left_to_whoever_serves_it(
    bench: Bench, work: Work, settings: Settings, pairs: list[Pair]
) -> None:
    await bench.create("it", pair=pairs[1])
    whole = await bench.position("it")
    lacking = settings.model_copy(update={"offers": ()})
    async with working(lacking, "other/0/1", holding=False) as other:
        for _ in range(2):
            with pytest.raises(ModelNotServed, match="slots of"):
                await other.append("it")
        with pytest.raises(ModelNotServed):
            await other.generate("it", "gen")
        assert other.engine.sessions == {}
        assert await bench.position("it") == whole
        # It has not kept the lease, which nobody would give back.
        assert (await bench.append("it")).position > whole


async def test_a_session_moves_to_a_server_that_offers_its_pair_in_another_place(
    bench: Bench, settings: Settings, pairs: list[Pair]
) -> None:
    window, slots = pairs
    await bench.create("it", "twin", pair=slots)
    async with working(turned_round(settings), "other/0/1") as other:
        assert other.runners.default.offered.pair == slots
        for turn in range(4):
            await bench.append("twin", f"seti {turn} ")
            await (other if turn % 2 == 0 else bench).append("it", f"seti {turn} ")
        await bench.generate("twin", "whole", remember=False)
        await other.generate("it", "moved", remember=False)
        assert text_of(other, "moved") == text_of(bench, "whole")
        await other.create("new", pair=window)
        assert await other.position("new") > 0


async def test_a_state_for_a_pair_that_is_not_served_is_refused(bench: Bench) -> None:
    with pytest.raises(ModelNotServed):
        await bench.desk.check(Check(session_id="s", model="m", memory="window", position=0, state=None, tail=()))


async def test_a_pair_without_room_leaves_the_others_at_work(
    bench: Bench, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    window, slots = pairs
    await bench.create("one", pair=window)
    lay = Runner.lay

    def full(runner: Runner, row: int, state: MemoryState | None) -> int:
        if runner.offered.pair == slots:
            raise Overloaded("no room")
        return lay(runner, row, state)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "lay", full)
        with pytest.raises(Overloaded):
            await bench.create("two", pair=slots)
        assert (await bench.append("one")).position > 0
    acknowledged = await bench.position("two")
    assert (await bench.desk.append(Append(session_id="two", text="nura "))).position >= acknowledged > 0


async def test_sessions_of_all_pairs_go_on_in_the_next_worker(work: Work, pairs: list[Pair]) -> None:
    async with work() as first:
        for pair in pairs:
            await first.create(pair.memory, f"{pair.memory}-twin", pair=pair)
            await first.append(pair.memory, TEXT)
            await first.append(f"{pair.memory}-twin", TEXT)
            await first.generate(f"{pair.memory}-twin", f"before-{pair.memory}", count=8)
    async with work() as second:
        for pair in pairs:
            await second.generate(pair.memory, f"after-{pair.memory}", count=8)
            assert text_of(second, f"after-{pair.memory}") == text_of(first, f"before-{pair.memory}")
