"""Rule 7 of server/store/base.py, for every store: generations, told again and gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.errors import Internal, StaleLease
from server.store.base import Finish, Lease, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE, GEN = "sess_one", "gen_one"
FINISH = Finish("stop", sampled=4, position=9)


async def _begun(store: Store, make: Make, ttl_seconds: int | None = None) -> Lease:
    """Two tokens asked, none sampled."""
    lease = await make.begun(store, ttl_seconds=ttl_seconds)
    operation = make.operation(generation_id=GEN)
    entry = make.entry(lease, 0, [1, 2], operation=operation, begins=make.generation(start=2))
    await make.written(store, entry)
    return lease


async def test_a_generation_that_has_begun_is_there(store: Store, make: Make) -> None:
    await _begun(store, make)
    assert await store.generation(GEN) == make.generation(start=2)
    assert await store.operation(ONE, "op_one") == make.operation(generation_id=GEN)
    assert await store.generation("gen_two") is None
    assert tuple((await store.load(ONE)).tail) == (1, 2)


async def test_sampled_tokens_are_the_sessions_and_the_generations(store: Store, other: Store, make: Make) -> None:
    lease = await _begun(store, make)
    sampled = make.entry(lease, 2, [3, 2**32 - 1], sampled_by=GEN)
    last = make.entry(lease, 4, [0], sampled_by=GEN, finish=FINISH, turn="ended")
    await make.written(store, sampled)
    assert await other.generation(GEN) == make.generation(start=2, tokens=[3, 2**32 - 1])
    await make.written(store, last)
    told = await other.generation(GEN)
    assert told == make.generation(start=2, tokens=[3, 2**32 - 1, 0], finish=FINISH)
    loaded = await other.load(ONE)
    assert (tuple(loaded.tail), loaded.record.turn) == ((1, 2, 3, 2**32 - 1, 0), "ended")


async def test_entries_of_one_call_begin_go_on_and_end(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await make.written(
        store,
        make.entry(lease, 0, [1], begins=make.generation(start=1)),
        make.entry(lease, 1, [2], sampled_by=GEN),
        make.entry(lease, 2, [3], sampled_by=GEN),
        make.entry(lease, 3, sampled_by=GEN, finish=FINISH),
        make.entry(lease, 3, [4]),
    )
    assert await store.generation(GEN) == make.generation(start=1, tokens=[2, 3], finish=FINISH)


async def test_a_generation_may_begin_with_what_it_has(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    begins = make.generation(start=0, tokens=[7, 8], finish=FINISH)
    await make.written(store, make.entry(lease, 0, [7, 8], begins=begins))
    assert await store.generation(GEN) == begins


async def test_the_tokens_of_a_generation_outlive_the_journal(store: Store, make: Make) -> None:
    lease = await _begun(store, make)
    for position in range(3, 8):
        await make.written(store, make.entry(lease, position - 1, [position], sampled_by=GEN))
        await store.save_snapshot(lease, position, b"state")
    assert await store.generation(GEN) == make.generation(start=2, tokens=range(3, 8))


async def test_somebody_else_goes_on_with_it(store: Store, other: Store, make: Make) -> None:
    old = await _begun(store, make)
    await make.written(store, make.entry(old, 2, [3], sampled_by=GEN))
    new = await other.acquire(ONE, "server/0/2", 60)
    [outcome] = await store.journal([make.entry(old, 3, [4], sampled_by=GEN, finish=FINISH)])
    assert isinstance(outcome, StaleLease)
    assert await other.generation(GEN) == make.generation(start=2, tokens=[3])
    await make.written(other, make.entry(new, 3, [5], sampled_by=GEN, finish=FINISH))
    assert await store.generation(GEN) == make.generation(start=2, tokens=[3, 5], finish=FINISH)


async def test_a_silent_entry_leaves_the_session_as_it_was(store: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store, ttl_seconds=100)
    await make.written(store, make.entry(lease, 0, [1, 2], open_text="open", open_tokens=1, turn="asked"))
    before = await store.load(ONE)
    clock.forward(10)
    begins = make.generation(start=2, tokens=[7, 8], finish=FINISH)
    operation = make.operation(generation_id=GEN)
    silent = make.entry(lease, 2, operation=operation, begins=begins, silent=True, open_text="no", turn="ended")
    [etag] = await make.written(store, silent)
    assert etag == before.record.etag
    assert await store.load(ONE) == before
    assert await store.generation(GEN) == begins
    assert await store.operation(ONE, "op_one") == operation
    [repeated] = await store.journal([silent])
    assert type(repeated).__name__ == "AlreadyApplied"


async def test_a_silent_entry_brings_no_tokens(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    [outcome] = await store.journal([make.entry(lease, 0, [1], silent=True)])
    assert isinstance(outcome, Internal)


@pytest.mark.parametrize(
    "what", ["unknown", "another session's", "ended", "nobody's finish", "begun twice", "elsewhere"]
)
async def test_an_entry_of_a_generation_that_makes_no_sense_writes_nothing(store: Store, make: Make, what: str) -> None:
    lease = await _begun(store, make)
    other = await make.begun(store, "sess_two")
    await make.written(store, make.entry(other, 0, [1], begins=make.generation("gen_two", session_id="sess_two")))
    if what == "ended":
        await make.written(store, make.entry(lease, 2, sampled_by=GEN, finish=FINISH))
    before, told = await store.load(ONE), await store.generation(GEN)
    wrong = {
        "unknown": make.entry(lease, 2, [3], sampled_by="gen_none"),
        "another session's": make.entry(lease, 2, [3], sampled_by="gen_two"),
        "ended": make.entry(lease, 2, [3], sampled_by=GEN),
        "nobody's finish": make.entry(lease, 2, [3], finish=FINISH),
        "begun twice": make.entry(lease, 2, [3], begins=make.generation(tokens=[9])),
        "elsewhere": make.entry(lease, 2, [3], begins=make.generation("gen_new", session_id="sess_two")),
    }[what]
    outcomes = await store.journal([replace(wrong, operation=make.operation("op_two")), make.entry(other, 1, [2])])
    assert [type(outcome) for outcome in outcomes] == [Internal, str]
    assert (await store.load(ONE), await store.generation(GEN)) == (before, told)
    assert await store.operation(ONE, "op_two") is None


async def test_a_generation_goes_with_its_session(store: Store, make: Make, clock: Clock) -> None:
    await _begun(store, make, ttl_seconds=50)
    clock.forward(50)
    assert await store.generation(GEN) is None
    await store.sweep()
    assert await store.generation(GEN) is None
    await _begun(store, make)
    assert await store.generation(GEN) == make.generation(start=2)
    await store.delete(TENANT, ONE)
    assert await store.generation(GEN) is None
    await store.create(make.record())
    assert await store.generation(GEN) is None


async def test_a_generation_is_forgotten_after_its_last_change(store: Store, make: Make, clock: Clock) -> None:
    lease = await _begun(store, make)
    clock.forward(3_000)
    await make.written(store, make.entry(lease, 2, [3], sampled_by=GEN))
    clock.forward(3_599)
    await store.sweep()
    assert await store.generation(GEN) == make.generation(start=2, tokens=[3])
    clock.forward(1)
    assert await store.generation(GEN) is None
    await store.sweep()
    assert tuple((await store.load(ONE)).tail) == (1, 2, 3)


@pytest.mark.parametrize("generation_id", ["", "gen_none", "../..", "gen_\u0000", "x" * 10_000])
async def test_an_unknown_generation_is_none(store: Store, generation_id: str) -> None:
    assert await store.generation(generation_id) is None
