"""What every store must do: the numbered rules of server/store/base.py, and the edges around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from server.errors import (
    Internal,
    InvalidRequest,
    NotFound,
    OperationMismatch,
    PreconditionFailed,
    ServerError,
    StaleLease,
    StoreUnavailable,
)
from server.store.base import AlreadyApplied, Lease, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make, OpenAnother

TENANT = "tenant"
ONE = "sess_one"


async def begin(store: Store, make: Make, session_id: str = ONE, ttl_seconds: int | None = None) -> Lease:
    await store.create(make.record(session_id, ttl_seconds=ttl_seconds))
    return await store.acquire(session_id, "worker")


async def written(store: Store, *tokens: int, make: Make, lease: Lease) -> None:
    start = (await store.get(TENANT, lease.session_id)).journaled
    assert await store.journal([make.entry(lease, start, tokens)]) == [None]


# Records


async def test_a_created_session_reads_back_the_same(store: Store, make: Make) -> None:
    record = make.record(metadata={"title": "naïve 😀 \u0000 end", "lone": "\ud800"})
    assert await store.create(record) == record
    assert await store.get(TENANT, ONE) == record


@pytest.mark.parametrize("session_id", ["sess_none", "", "../../etc", "a\ud800", "a\u0000b", "x" * 10_000])
async def test_an_unknown_id_is_not_found(store: Store, make: Make, session_id: str) -> None:
    await store.create(make.record())
    for call in _calls(store, make, session_id):
        with pytest.raises(NotFound):
            await call()


async def test_another_tenants_session_is_not_found(store: Store, make: Make) -> None:
    record = await store.create(make.record())
    with pytest.raises(NotFound):
        await store.get("other", ONE)
    with pytest.raises(NotFound):
        await store.update("other", ONE, metadata={"taken": "over"})
    with pytest.raises(NotFound):
        await store.delete("other", ONE)
    assert (await store.list("other", limit=10, after=None, order="asc")).records == ()
    assert await store.get(TENANT, ONE) == record


async def test_an_id_cannot_be_taken_twice(store: Store, make: Make) -> None:
    first = await store.create(make.record(metadata={"which": "first"}))
    with pytest.raises(Internal):
        await store.create(make.record(tenant="other", metadata={"which": "second"}))
    assert await store.get(TENANT, ONE) == first


async def test_update_changes_only_what_it_names(store: Store, make: Make, clock: Clock) -> None:
    before = await store.create(make.record(metadata={"a": "1"}, ttl_seconds=100))
    clock.forward(10)
    changed = await store.update(TENANT, ONE, metadata={"b": "2"})
    assert changed == await store.get(TENANT, ONE)
    assert changed.metadata == {"b": "2"}
    assert (changed.ttl_seconds, changed.expires_at) == (100, clock.now + 100)
    assert (changed.version, changed.updated_at, changed.created_at) == (2, clock.now, before.created_at)
    forever = await store.update(TENANT, ONE, ttl_seconds=None)
    assert (forever.metadata, forever.ttl_seconds, forever.expires_at) == ({"b": "2"}, None, None)


async def test_update_refuses_a_version_that_is_not_the_newest(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    await written(store, 1, make=make, lease=lease)
    with pytest.raises(PreconditionFailed):
        await store.update(TENANT, ONE, metadata={"late": "yes"}, if_version=1)
    record = await store.update(TENANT, ONE, metadata={"late": "no"}, if_version=2)
    assert (record.metadata, record.version) == ({"late": "no"}, 3)


async def test_of_two_updates_at_one_version_one_wins(store: Store, another: OpenAnother, make: Make) -> None:
    other = another()
    await other.open()
    try:
        await store.create(make.record())
        outcomes = await asyncio.gather(
            *(
                each.update(TENANT, ONE, metadata={"by": str(number)}, if_version=1)
                for number, each in enumerate([store, other] * 3)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, PreconditionFailed)]
        assert len(refused) == len(outcomes) - 1
        assert (await store.get(TENANT, ONE)).version == 2
    finally:
        await other.close()


async def test_lists_go_through_every_session_once_in_both_orders(store: Store, make: Make) -> None:
    moments = {"sess_c": 1.0, "sess_a": 2.0, "sess_b": 2.0, "sess_d": 3.5, "sess_e": 3.5}
    for session_id, created_at in moments.items():
        await store.create(make.record(session_id, created_at=created_at))
    await store.create(make.record("sess_other", tenant="other", created_at=2.0))
    expected = ["sess_c", "sess_a", "sess_b", "sess_d", "sess_e"]
    for limit in (1, 2, 5, 6):
        assert await _walk(store, limit, "asc") == expected
        assert await _walk(store, limit, "desc") == expected[::-1]


async def _walk(store: Store, limit: int, order: str) -> list[str]:
    seen: list[str] = []
    after = None
    while True:
        page = await store.list(TENANT, limit=limit, after=after, order="asc" if order == "asc" else "desc")
        assert len(page.records) <= limit
        seen += [record.id for record in page.records]
        if not page.has_more:
            return seen
        after = seen[-1]


@pytest.mark.parametrize("after", ["sess_none", "sess_other", "\ud800"])
async def test_a_list_behind_an_unknown_session_is_invalid(store: Store, make: Make, after: str) -> None:
    await store.create(make.record("sess_other", tenant="other"))
    with pytest.raises(InvalidRequest) as caught:
        await store.list(TENANT, limit=10, after=after, order="asc")
    assert caught.value.param == "after"


# Rule 1: what was accepted is there


async def test_rule_1_another_reader_sees_what_was_accepted(store: Store, another: OpenAnother, make: Make) -> None:
    lease = await begin(store, make)
    entry = make.entry(lease, 0, [0, 7, 2**32 - 1], open_text="so\u0000 f\u00e4r 😀", open_tokens=3, turn="open")
    assert await store.journal([entry]) == [None]
    other = another()
    await other.open()
    try:
        loaded = await other.load(ONE)
    finally:
        await other.close()
    assert loaded.tail == (0, 7, 2**32 - 1)
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
    lease = await begin(store, make)
    await written(store, 1, 2, 3, make=make, lease=lease)
    await store.save_snapshot(lease, 2, b"two")
    before = await store.load(ONE)
    await store.close()
    again = another()
    await again.open()
    try:
        assert await again.load(ONE) == before
    finally:
        await again.close()


# Rule 2: no gaps


@pytest.mark.parametrize("start", [0, 1, 3, -1])
async def test_rule_2_an_entry_elsewhere_than_at_the_end_is_refused(store: Store, make: Make, start: int) -> None:
    lease = await begin(store, make)
    await written(store, 5, 6, make=make, lease=lease)
    before = await store.load(ONE)
    [outcome] = await store.journal([make.entry(lease, start, [9], open_text="no", turn="ended")])
    assert isinstance(outcome, Internal)
    assert await store.load(ONE) == before


async def test_rule_2_entries_of_one_session_follow_each_other_in_one_call(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    outcomes = await store.journal(
        [make.entry(lease, 0, [1, 2]), make.entry(lease, 2, []), make.entry(lease, 2, [3], turn="ended")]
    )
    assert outcomes == [None, None, None]
    loaded = await store.load(ONE)
    assert (loaded.tail, loaded.record.turn, loaded.record.version) == ((1, 2, 3), "ended", 4)


async def test_rule_2_a_refused_entry_does_not_spoil_the_others(store: Store, make: Make) -> None:
    leases = [await begin(store, make, f"sess_{number}") for number in range(5)]
    await store.acquire("sess_1", "newer")
    await store.delete(TENANT, "sess_2")
    entries = [make.entry(lease, 0, [number]) for number, lease in enumerate(leases)]
    entries[3] = make.entry(leases[3], 4, [3])
    outcomes = await store.journal(entries)
    assert [type(outcome) for outcome in outcomes] == [type(None), StaleLease, NotFound, Internal, type(None)]
    assert [(await store.load(f"sess_{number}")).tail for number in (0, 1, 3, 4)] == [(0,), (), (), (4,)]


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1, 2, 2**40]])
async def test_rule_2_a_token_out_of_range_refuses_its_entry_alone(store: Store, make: Make, tokens: list[int]) -> None:
    lease = await begin(store, make)
    other = await begin(store, make, "sess_two")
    outcomes = await store.journal([make.entry(lease, 0, tokens), make.entry(other, 0, [1])])
    assert [type(outcome) for outcome in outcomes] == [Internal, type(None)]
    assert (await store.get(TENANT, ONE)).version == 1


async def test_rule_2_text_without_utf8_form_refuses_its_entry_alone(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    other = await begin(store, make, "sess_two")
    outcomes = await store.journal(
        [
            make.entry(lease, 0, [1], open_text="half \ud83d"),
            make.entry(lease, 0, [1], operation=make.operation("op \udc00")),
            make.entry(other, 0, [1]),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [InvalidRequest, InvalidRequest, type(None)]
    assert (await store.load(ONE)).tail == ()


async def test_rule_2_nothing_to_write_is_fine(store: Store) -> None:
    assert list(await store.journal([])) == []


async def test_rule_2_a_long_entry_comes_back_whole(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    tokens = tuple(range(100_000))
    assert await store.journal([make.entry(lease, 0, tokens)]) == [None]
    assert (await store.load(ONE)).tail == tokens


# Rule 3: one writer


async def test_rule_3_an_older_lease_changes_nothing(store: Store, make: Make) -> None:
    old = await begin(store, make)
    await written(store, 1, 2, make=make, lease=old)
    new = await store.acquire(ONE, "newer")
    assert new.fence > old.fence
    before = await store.load(ONE)
    [outcome] = await store.journal([make.entry(old, 2, [3], operation=make.operation())])
    assert isinstance(outcome, StaleLease)
    with pytest.raises(StaleLease):
        await store.save_snapshot(old, 2, b"late")
    assert await store.load(ONE) == before
    assert await store.operation(ONE, "op_one") is None
    assert await store.journal([make.entry(new, 2, [3])]) == [None]


async def test_rule_3_the_same_owner_gets_a_newer_lease_too(store: Store, make: Make) -> None:
    old = await begin(store, make)
    await store.acquire(ONE, "worker")
    [outcome] = await store.journal([make.entry(old, 0, [1])])
    assert isinstance(outcome, StaleLease)


async def test_rule_3_a_fence_nobody_was_given_is_refused(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    [outcome] = await store.journal([make.entry(Lease(ONE, lease.fence + 1), 0, [1])])
    assert isinstance(outcome, StaleLease)


async def test_rule_3_writers_that_take_over_from_each_other_leave_no_gap(
    store: Store, another: OpenAnother, make: Make
) -> None:
    other = another()
    await other.open()
    try:
        await store.create(make.record())
        await asyncio.gather(*(_take_over(each, make) for each in (store, other) * 2))
        loaded = await store.load(ONE)
        assert len(loaded.tail) == loaded.record.journaled
        assert loaded.tail == tuple(range(loaded.record.journaled))
        assert loaded.record.journaled >= 4
    finally:
        await other.close()


async def _take_over(store: Store, make: Make) -> None:
    """Append at least one token, however often somebody else gets in between."""
    while True:
        lease = await store.acquire(ONE, "worker")
        start = (await store.load(ONE)).record.journaled
        [outcome] = await store.journal([make.entry(lease, start, [start])])
        if outcome is None:
            return
        assert isinstance(outcome, StaleLease)


# Rule 4: snapshots


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 6])
async def test_rule_4_snapshot_and_tail_are_the_whole_session(store: Store, make: Make, position: int) -> None:
    lease = await begin(store, make)
    for tokens in ([0, 1, 2], [3], [4, 5]):
        await written(store, *tokens, make=make, lease=lease)
    before = await store.get(TENANT, ONE)
    await store.save_snapshot(lease, position, b"state")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position) == (b"state", position)
    assert loaded.tail == tuple(range(position, 6))
    assert loaded.record == before
    await written(store, 6, make=make, lease=lease)
    assert (await store.load(ONE)).tail == tuple(range(position, 7))


async def test_rule_4_an_older_snapshot_is_ignored_and_an_equal_one_taken(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    await written(store, 0, 1, 2, 3, make=make, lease=lease)
    await store.save_snapshot(lease, 3, b"three")
    await store.save_snapshot(lease, 2, b"two")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail) == (b"three", 3, (3,))
    await store.save_snapshot(lease, 3, b"three again")
    assert (await store.load(ONE)).snapshot == b"three again"


@pytest.mark.parametrize("position", [3, -1])
async def test_rule_4_a_snapshot_of_what_was_never_journaled_is_refused(
    store: Store, make: Make, position: int
) -> None:
    lease = await begin(store, make)
    await written(store, 0, 1, make=make, lease=lease)
    with pytest.raises(Internal):
        await store.save_snapshot(lease, position, b"invented")
    assert (await store.load(ONE)).snapshot is None


async def test_rule_4_an_empty_snapshot_is_a_snapshot(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    await store.save_snapshot(lease, 0, b"")
    assert (await store.load(ONE)).snapshot == b""


async def test_rule_4_loads_while_snapshots_change_are_of_one_moment(
    store: Store, another: OpenAnother, make: Make
) -> None:
    lease = await begin(store, make)
    other = another()
    await other.open()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_write_snapshots(store, make, lease, rounds=30))
            group.create_task(_load_until(other, rounds=30))
            group.create_task(_load_until(store, rounds=30))
    finally:
        await other.close()


async def _write_snapshots(store: Store, make: Make, lease: Lease, rounds: int) -> None:
    for number in range(rounds):
        assert await store.journal([make.entry(lease, number, [number])]) == [None]
        await store.save_snapshot(lease, number + 1, str(number + 1).encode())


async def _load_until(store: Store, rounds: int) -> None:
    journaled = 0
    while journaled < rounds:
        loaded = await store.load(ONE)
        assert loaded.record.journaled >= journaled
        journaled = loaded.record.journaled
        assert int(loaded.snapshot or b"0") == loaded.snapshot_position
        assert loaded.tail == tuple(range(loaded.snapshot_position, journaled))


# Rule 5: what is gone is gone


async def test_rule_5_a_deleted_session_is_nowhere(store: Store, make: Make) -> None:
    lease = await _full_session(store, make)
    await store.delete(TENANT, ONE)
    await _assert_gone(store, make, lease)


async def test_rule_5_an_id_used_again_finds_nothing_of_the_old_session(store: Store, make: Make) -> None:
    await _full_session(store, make)
    await store.delete(TENANT, ONE)
    record = await store.create(make.record())
    loaded = await store.load(ONE)
    assert (loaded.record, loaded.snapshot, loaded.tail) == (record, None, ())
    assert await store.operation(ONE, "op_one") is None


async def test_rule_5_an_expired_session_is_not_found_before_and_after_the_sweep(
    store: Store, make: Make, clock: Clock
) -> None:
    lease = await _full_session(store, make, ttl_seconds=60)
    await store.create(make.record("sess_stays"))
    clock.forward(59.5)
    await store.get(TENANT, ONE)
    assert await store.sweep() == 0
    clock.forward(0.5)
    await _assert_gone(store, make, lease)
    assert await store.sweep() == 1
    assert await store.sweep() == 0
    clock.now -= 3_600  # had it only been hidden, it would be back
    await _assert_gone(store, make, lease)
    await store.get(TENANT, "sess_stays")


async def test_rule_5_a_sweep_takes_any_number_of_sessions(store: Store, make: Make, clock: Clock) -> None:
    for number in range(120):
        await store.create(make.record(f"sess_{number}", ttl_seconds=1))
    clock.forward(2)
    assert await store.sweep() == 120


async def test_rule_5_a_lifetime_counts_from_the_last_change(store: Store, make: Make, clock: Clock) -> None:
    lease = await begin(store, make, ttl_seconds=60)
    clock.forward(40)
    await written(store, 1, make=make, lease=lease)
    clock.forward(40)
    record = await store.update(TENANT, ONE, metadata={})
    assert record.expires_at == clock.now + 60
    clock.forward(40)
    await store.load(ONE)  # reading is no change
    clock.forward(20)
    with pytest.raises(NotFound):
        await store.get(TENANT, ONE)


async def _full_session(store: Store, make: Make, ttl_seconds: int | None = None) -> Lease:
    lease = await begin(store, make, ttl_seconds=ttl_seconds)
    assert await store.journal([make.entry(lease, 0, [1, 2, 3], operation=make.operation())]) == [None]
    await store.save_snapshot(lease, 2, b"state")
    return lease


async def _assert_gone(store: Store, make: Make, lease: Lease) -> None:
    for call in _calls(store, make, ONE):
        with pytest.raises(NotFound):
            await call()
    [outcome] = await store.journal([make.entry(lease, 3, [4])])
    assert isinstance(outcome, NotFound)
    assert ONE not in await _walk(store, 10, "asc")


def _calls(store: Store, make: Make, session_id: str) -> list[Callable[[], Awaitable[object]]]:
    """Every method that names a session and raises."""
    return [
        lambda: store.get(TENANT, session_id),
        lambda: store.update(TENANT, session_id, metadata={"a": "b"}),
        lambda: store.acquire(session_id, "worker"),
        lambda: store.operation(session_id, "op_one"),
        lambda: store.load(session_id),
        lambda: store.save_snapshot(Lease(session_id, 1), 0, b"state"),
        lambda: store.delete(TENANT, session_id),
    ]


# Rule 6: operations


async def test_rule_6_an_operation_is_recorded_with_its_tokens(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    assert await store.operation(ONE, "op_one") is None
    assert await store.journal([make.entry(lease, 0, [1], operation=make.operation())]) == [None]
    assert await store.operation(ONE, "op_one") == make.operation()
    assert await store.operation(ONE, "op_two") is None


async def test_rule_6_a_refused_entry_records_no_operation(store: Store, make: Make) -> None:
    lease = await begin(store, make)
    [outcome] = await store.journal([make.entry(lease, 5, [1], operation=make.operation())])
    assert isinstance(outcome, ServerError)
    assert await store.operation(ONE, "op_one") is None


@pytest.mark.parametrize("start", [0, 1])
async def test_rule_6_a_repeat_is_refused_and_writes_nothing(store: Store, make: Make, start: int) -> None:
    lease = await begin(store, make)
    entries = [
        make.entry(lease, 0, [1], operation=make.operation()),
        make.entry(lease, start, [2], operation=make.operation()),
        make.entry(lease, start, [3], operation=make.operation(digest="another")),
    ]
    outcomes = await store.journal(entries)
    assert [type(outcome) for outcome in outcomes] == [type(None), AlreadyApplied, OperationMismatch]
    assert (await store.load(ONE)).tail == (1,)
    assert (await store.get(TENANT, ONE)).version == 2
    assert await store.operation(ONE, "op_one") == make.operation()


async def test_rule_6_operation_ids_belong_to_their_session(store: Store, make: Make) -> None:
    leases = [await begin(store, make, name) for name in ("sess_a", "sess_b")]
    entries = [make.entry(lease, 0, [1], operation=make.operation(digest=lease.session_id)) for lease in leases]
    assert await store.journal(entries) == [None, None]
    found = await store.operation("sess_b", "op_one")
    assert found is not None
    assert found.request_digest == "sess_b"


async def test_rule_6_an_old_operation_is_forgotten(store: Store, make: Make, clock: Clock) -> None:
    lease = await begin(store, make)
    assert await store.journal([make.entry(lease, 0, [1], operation=make.operation())]) == [None]
    clock.forward(3_599)
    await store.sweep()
    assert await store.operation(ONE, "op_one") == make.operation()
    clock.forward(1)
    assert await store.operation(ONE, "op_one") is None
    renewed = make.operation(digest="another")
    assert await store.journal([make.entry(lease, 1, [2], operation=renewed)]) == [None]
    await store.sweep()
    assert await store.operation(ONE, "op_one") == renewed


# Callers


async def test_many_tasks_write_many_sessions_at_once(store: Store, make: Make) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(_life(store, make, f"sess_{number}"))
    assert len(await _walk(store, 7, "desc")) == 50


async def _life(store: Store, make: Make, session_id: str) -> None:
    lease = await begin(store, make, session_id)
    own = abs(hash(session_id)) % 1_000
    for start in range(4):
        assert await store.journal([make.entry(lease, start, [own + start])]) == [None]
    await store.save_snapshot(lease, 3, session_id.encode())
    loaded = await store.load(session_id)
    assert (loaded.snapshot, loaded.tail) == (session_id.encode(), (own + 3,))


async def test_cancelled_callers_leave_whole_steps_and_a_working_store(store: Store, make: Make) -> None:
    leases = [await begin(store, make, f"sess_{number}") for number in range(20)]
    calls = [
        asyncio.ensure_future(_journal_then_snapshot(store, make, lease, delay=number / 2_000))
        for number, lease in enumerate(leases)
    ]
    await asyncio.sleep(0.003)
    for call in calls:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    async with asyncio.timeout(5):
        for lease in leases:
            start = (await store.get(TENANT, lease.session_id)).journaled
            assert start in (0, 3)
            assert await store.journal([make.entry(lease, start, [9])]) == [None]
            loaded = await store.load(lease.session_id)
            assert (*range(loaded.snapshot_position), *loaded.tail) == (*range(start), 9)


async def _journal_then_snapshot(store: Store, make: Make, lease: Lease, delay: float) -> None:
    await asyncio.sleep(delay)
    assert await store.journal([make.entry(lease, 0, [0, 1, 2])]) == [None]
    await store.save_snapshot(lease, 2, b"two")


async def test_ping_is_silent_when_all_is_well(store: Store) -> None:
    await store.ping()


async def test_a_store_that_is_not_open_says_so(another: OpenAnother, make: Make) -> None:
    store = another()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.open()
    await store.create(make.record())
    await store.close()
    for call in (store.ping, lambda: store.get(TENANT, ONE), lambda: store.load(ONE)):
        with pytest.raises(StoreUnavailable):
            await call()
    await store.close()
