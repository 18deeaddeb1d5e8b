"""Rule 3 of server/store/base.py, for every store: one writer at a time, and how a session changes hands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from server.errors import NotFound, StaleLease
from server.store.base import Lease, LeaseHeld, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE = "sess_one"
HOLDER, REQUESTER = "server/0/1", "server/1/1"


async def test_rule_3_an_older_lease_changes_nothing(store: Store, make: Make) -> None:
    old = await make.begun(store)
    await make.appended(store, old, 1, 2)
    new = await store.acquire(ONE, "server/0/2", 60)
    assert new.fence > old.fence
    before = await store.load(ONE)
    [outcome] = await store.journal([make.entry(old, 2, [3], operation=make.operation())])
    assert isinstance(outcome, StaleLease)
    with pytest.raises(StaleLease):
        await store.save_snapshot(old, 2, b"late")
    assert await store.load(ONE) == before
    assert await store.operation(ONE, "op_one") is None
    await make.written(store, make.entry(new, 2, [3]))


async def test_rule_3_the_same_owner_gets_a_newer_lease_too(store: Store, make: Make) -> None:
    old = await make.begun(store)
    await store.acquire(ONE, "server/0/1", 60)
    [outcome] = await store.journal([make.entry(old, 0, [1])])
    assert isinstance(outcome, StaleLease)


async def test_rule_3_a_fence_nobody_was_given_is_refused(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    [outcome] = await store.journal([make.entry(Lease(ONE, lease.fence + 1), 0, [1])])
    assert isinstance(outcome, StaleLease)


async def test_rule_3_writers_that_take_over_from_each_other_leave_no_gap(
    store: Store, other: Store, make: Make
) -> None:
    await store.create(make.record())
    await asyncio.gather(*(_take_over(each, make) for each in (store, other) * 2))
    loaded = await store.load(ONE)
    assert tuple(loaded.tail) == tuple(range(loaded.record.journaled))
    assert loaded.record.journaled >= 4


async def _take_over(store: Store, make: Make) -> None:
    """Append at least one token, however often somebody else gets in between."""
    while True:
        lease = await store.acquire(ONE, "server/0/1", 60)
        start = (await store.load(ONE)).record.journaled
        [outcome] = await store.journal([make.entry(lease, start, [start])])
        if isinstance(outcome, str):
            return
        assert isinstance(outcome, StaleLease)


async def test_a_held_session_is_not_given_to_somebody_else(store: Store, other: Store, make: Make) -> None:
    lease = await make.begun(store, owner=HOLDER)
    with pytest.raises(LeaseHeld) as caught:
        await other.acquire(ONE, REQUESTER, 60)
    assert (caught.value.owner, caught.value.busy) == (HOLDER, False)
    assert 59 <= caught.value.seconds <= 60
    await make.appended(store, lease, 1)  # the asking took nothing away


async def test_a_released_session_is_given_at_once(store: Store, other: Store, make: Make) -> None:
    lease = await make.begun(store, owner=HOLDER)
    await store.release(lease)
    newer = await other.acquire(ONE, REQUESTER, 60)
    assert newer.fence > lease.fence
    [outcome] = await store.journal([make.entry(lease, 0, [1])])
    assert isinstance(outcome, StaleLease)
    await make.appended(other, newer, 1)


async def test_a_late_release_takes_nothing_from_the_next_holder(store: Store, other: Store, make: Make) -> None:
    old = await make.begun(store, owner=HOLDER)
    await store.release(old)
    await other.acquire(ONE, REQUESTER, 60)
    await store.release(old)
    await store.decline(old, 60)
    with pytest.raises(LeaseHeld) as caught:
        await store.acquire(ONE, HOLDER, 60)
    assert not caught.value.busy


async def test_release_and_decline_of_a_session_that_is_gone_are_ignored(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await store.delete(TENANT, ONE)
    await store.release(lease)
    await store.decline(lease, 1)


async def test_a_released_lease_cannot_be_renewed(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await store.release(lease)
    [outcome] = await store.renew([lease], 60)
    assert isinstance(outcome, StaleLease)


async def test_rule_3_a_lease_of_a_deleted_session_does_not_write_the_next_of_its_id(store: Store, make: Make) -> None:
    old = await make.begun(store)
    await store.delete(TENANT, ONE)
    await make.begun(store)
    [outcome] = await store.journal([make.entry(old, 0, [1])])
    assert isinstance(outcome, StaleLease)
    with pytest.raises(StaleLease):
        await store.save_snapshot(old, 0, b"late")


async def test_a_lease_ends_by_time_and_its_holder_is_refused_only_then(
    store: Store, other: Store, make: Make, clock: Clock
) -> None:
    await store.create(make.record())
    lease = await store.acquire(ONE, HOLDER, 0.3)
    with pytest.raises(LeaseHeld):
        await other.acquire(ONE, REQUESTER, 60)
    await clock.passing(0.35)
    await make.appended(store, lease, 1)  # late, but nobody has taken over
    newer = await other.acquire(ONE, REQUESTER, 60)
    [outcome] = await store.journal([make.entry(lease, 1, [2])])
    assert isinstance(outcome, StaleLease)
    await make.appended(other, newer, 2)


async def test_a_renewed_lease_lasts(store: Store, other: Store, make: Make, clock: Clock) -> None:
    await store.create(make.record())
    lease = await store.acquire(ONE, HOLDER, 0.3)
    assert list(await store.renew([lease], 60)) == [None]
    await clock.passing(0.35)
    with pytest.raises(LeaseHeld):
        await other.acquire(ONE, REQUESTER, 60)


async def test_one_that_ended_can_be_renewed_until_somebody_acquires(
    store: Store, other: Store, make: Make, clock: Clock
) -> None:
    await store.create(make.record())
    lease = await store.acquire(ONE, HOLDER, 0.1)
    await clock.passing(0.15)
    assert list(await store.renew([lease], 60)) == [None]
    with pytest.raises(LeaseHeld) as caught:
        await other.acquire(ONE, REQUESTER, 60)
    assert caught.value.owner == HOLDER


async def test_renewals_have_an_outcome_each(store: Store, make: Make) -> None:
    leases = [await make.begun(store, f"sess_{number}") for number in range(4)]
    await store.acquire("sess_1", "server/0/2", 60)
    await store.delete(TENANT, "sess_2")
    outcomes = await store.renew(leases, 60)
    assert [type(outcome) for outcome in outcomes] == [type(None), StaleLease, NotFound, type(None)]
    assert list(await store.renew([], 60)) == []


@pytest.mark.parametrize("later", ["server/0/2", "server/0/10"])
async def test_an_earlier_incarnation_is_superseded_at_once(store: Store, other: Store, make: Make, later: str) -> None:
    lease = await make.begun(store, owner="server/0/1")
    newer = await other.acquire(ONE, later, 60)
    assert newer.fence > lease.fence


@pytest.mark.parametrize("elsewhere", ["server/1/2", "server2/0/2", "ser/ver/0/2"])
async def test_another_worker_or_server_is_no_later_incarnation(
    store: Store, other: Store, make: Make, elsewhere: str
) -> None:
    await make.begun(store, owner="server/0/1")
    with pytest.raises(LeaseHeld):
        await other.acquire(ONE, elsewhere, 60)


async def test_the_holder_is_told_once_that_a_session_is_wanted(store: Store, other: Store, make: Make) -> None:
    await make.begun(store, owner=HOLDER)
    await make.begun(store, "sess_two", owner=HOLDER)
    await make.begun(store, "sess_other", owner="server/5/1")
    assert list(await store.wanted(HOLDER, 0)) == []
    for _ in range(3):
        with pytest.raises(LeaseHeld):
            await other.acquire(ONE, REQUESTER, 60)
    assert list(await store.wanted(HOLDER, 1)) == [ONE]
    assert list(await store.wanted(HOLDER, 0.05)) == []
    assert list(await store.wanted("server/5/1", 0)) == []


async def test_who_waits_for_wants_is_woken(store: Store, other: Store, make: Make) -> None:
    await make.begun(store, owner=HOLDER)
    async with asyncio.TaskGroup() as group, asyncio.timeout(5):
        waiting = group.create_task(store.wanted(HOLDER, 30))
        await asyncio.sleep(0.05)
        with pytest.raises(LeaseHeld):
            await other.acquire(ONE, REQUESTER, 60)
        assert list(await waiting) == [ONE]


async def test_a_wait_that_is_cancelled_leaves_a_working_store(store: Store, other: Store, make: Make) -> None:
    lease = await make.begun(store, owner=HOLDER)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.wanted(HOLDER, 30), 0.1)
    await make.appended(store, lease, 1)
    assert tuple((await other.load(ONE)).tail) == (1,)


async def test_a_declined_session_is_busy_for_that_long(store: Store, other: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store, owner=HOLDER)
    with pytest.raises(LeaseHeld):
        await other.acquire(ONE, REQUESTER, 60)
    await store.wanted(HOLDER, 1)
    await store.decline(lease, 0.3)
    with pytest.raises(LeaseHeld) as caught:
        await other.acquire(ONE, REQUESTER, 60)
    assert caught.value.busy
    await clock.passing(0.35)
    with pytest.raises(LeaseHeld) as caught:
        await other.acquire(ONE, REQUESTER, 60)
    assert not caught.value.busy


async def test_a_hand_over_from_the_want_to_the_first_write(store: Store, other: Store, make: Make) -> None:
    lease = await make.begun(store, owner=HOLDER)
    await make.appended(store, lease, 0, 1, 2)
    with pytest.raises(LeaseHeld):
        await other.acquire(ONE, REQUESTER, 60)
    [wanted] = await store.wanted(HOLDER, 1)
    await store.save_snapshot(lease, 3, b"three")
    await store.release(lease)
    newer = await other.acquire(wanted, REQUESTER, 60)
    loaded = await other.load(wanted)
    assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail)) == (b"three", 3, ())
    await make.appended(other, newer, 3)
    with pytest.raises(LeaseHeld) as caught:
        await store.acquire(ONE, HOLDER, 60)
    assert caught.value.owner == REQUESTER


async def test_of_many_that_want_a_free_session_one_gets_it(store: Store, other: Store, make: Make) -> None:
    await store.create(make.record())
    outcomes = await asyncio.gather(
        *(each.acquire(ONE, f"server/{number}/1", 60) for number, each in enumerate([store, other] * 5)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Lease"] + ["LeaseHeld"] * 9
