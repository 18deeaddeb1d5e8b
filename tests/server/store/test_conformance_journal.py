"""Rules 1, 2 and 7 of server/store/base.py, for every store: the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.errors import (
    Internal,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    StaleLease,
)
from server.store.base import Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Make, OpenAnother

TENANT = "tenant"
ONE = "sess_one"


async def test_rule_1_another_reader_sees_what_was_accepted(store: Store, another: OpenAnother, make: Make) -> None:
    lease = await make.begun(store)
    entry = make.entry(lease, 0, [0, 7, 2**32 - 1], open_text="so\u0000 f\u00e4r 😀", open_tokens=3, turn="open")
    await make.written(store, entry)
    other = another()
    await other.open()
    try:
        loaded = await other.load(ONE)
    finally:
        await other.close()
    assert tuple(loaded.tail) == (0, 7, 2**32 - 1)
    assert (loaded.snapshot, loaded.snapshot_position) == (None, 0)
    record = loaded.record
    assert (record.journaled, record.open_text, record.open_tokens, record.turn) == (
        3,
        "so\u0000 f\u00e4r 😀",
        3,
        "open",
    )
    assert (record.version, record.position) == (2, 6)


async def test_rule_1_a_reopened_store_has_everything(store: Store, another: OpenAnother, make: Make) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 1, 2, 3)
    await store.save_snapshot(lease, 2, b"two")
    before = await store.load(ONE)
    await store.close()
    again = another()
    await again.open()
    try:
        assert await again.load(ONE) == before
    finally:
        await again.close()


@pytest.mark.parametrize("start", [0, 1, 3, -1])
async def test_rule_2_an_entry_elsewhere_than_at_the_end_is_refused(store: Store, make: Make, start: int) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 5, 6)
    before = await store.load(ONE)
    [outcome] = await store.journal([make.entry(lease, start, [9], open_text="no", turn="ended")])
    assert isinstance(outcome, StaleLease)
    assert await store.load(ONE) == before


async def test_rule_2_entries_of_one_session_follow_each_other_in_one_call(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await make.written(
        store, make.entry(lease, 0, [1, 2]), make.entry(lease, 2, []), make.entry(lease, 2, [3], turn="ended")
    )
    loaded = await store.load(ONE)
    assert (tuple(loaded.tail), loaded.record.turn, loaded.record.version) == ((1, 2, 3), "ended", 4)


async def test_rule_2_a_refused_entry_does_not_spoil_the_others(store: Store, make: Make) -> None:
    leases = [await make.begun(store, f"sess_{number}") for number in range(5)]
    await store.acquire("sess_1", "server/0/2", 60)
    await store.delete(TENANT, "sess_2")
    entries = [make.entry(lease, 0, [number]) for number, lease in enumerate(leases)]
    entries[3] = make.entry(leases[3], 4, [3])
    outcomes = await store.journal(entries)
    assert [type(outcome) for outcome in outcomes] == [str, StaleLease, NotFound, StaleLease, str]
    assert [tuple((await store.load(f"sess_{number}")).tail) for number in (0, 1, 3, 4)] == [(0,), (), (), (4,)]


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1, 2, 2**40]])
async def test_rule_2_a_token_out_of_range_refuses_its_entry_alone(store: Store, make: Make, tokens: list[int]) -> None:
    lease = await make.begun(store)
    other = await make.begun(store, "sess_two")
    outcomes = await store.journal([make.entry(lease, 0, tokens), make.entry(other, 0, [1])])
    assert [type(outcome) for outcome in outcomes] == [Internal, str]
    assert (await store.get(TENANT, ONE)).version == 1


async def test_rule_2_text_without_utf8_form_refuses_its_entry_alone(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    other = await make.begun(store, "sess_two")
    outcomes = await store.journal(
        [
            make.entry(lease, 0, [1], open_text="half \ud83d"),
            make.entry(lease, 0, [1], operation=make.operation("op \udc00")),
            make.entry(other, 0, [1]),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [InvalidRequest, InvalidRequest, str]
    assert tuple((await store.load(ONE)).tail) == ()


async def test_if_match_refuses_its_entry_alone(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    created = (await store.get(TENANT, ONE)).etag
    first = make.entry(lease, 0, [1], if_match=frozenset({"another", created}))
    late = make.entry(lease, 1, [2], if_match=frozenset({created}))
    outcomes = await store.journal([first, late, make.entry(lease, 1, [3])])
    assert [type(outcome) for outcome in outcomes] == [str, PreconditionFailed, str]
    assert tuple((await store.load(ONE)).tail) == (1, 3)
    [refused] = await store.journal([make.entry(lease, 2, [4], if_match=frozenset())])
    assert isinstance(refused, PreconditionFailed)


async def test_rule_2_nothing_to_write_is_fine(store: Store) -> None:
    assert list(await store.journal([])) == []


async def test_rule_2_a_long_entry_comes_back_whole(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    tokens = tuple(range(100_000))
    await make.written(store, make.entry(lease, 0, tokens))
    assert tuple((await store.load(ONE)).tail) == tokens
