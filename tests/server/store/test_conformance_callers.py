"""What every store owes its callers: many at once, cancelled ones, early and late ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from server.errors import (
    StoreUnavailable,
)
from server.store.base import Lease, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Make, OpenAnother

TENANT = "tenant"
ONE = "sess_one"


async def test_many_tasks_write_many_sessions_at_once(store: Store, make: Make) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(_life(store, make, f"sess_{number}"))
    assert len(await make.listed(store, 7, "desc")) == 50


async def _life(store: Store, make: Make, session_id: str) -> None:
    lease = await make.begun(store, session_id)
    own = abs(hash(session_id)) % 1_000
    for start in range(4):
        await make.written(store, make.entry(lease, start, [own + start]))
    await store.save_snapshot(lease, 3, session_id.encode())
    loaded = await store.load(session_id)
    assert (loaded.snapshot, tuple(loaded.tail)) == (session_id.encode(), (own + 3,))


async def test_cancelled_callers_leave_whole_steps_and_a_working_store(store: Store, make: Make) -> None:
    leases = [await make.begun(store, f"sess_{number}") for number in range(20)]
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
            await make.written(store, make.entry(lease, start, [9]))
            loaded = await store.load(lease.session_id)
            assert (*range(loaded.snapshot_position), *loaded.tail) == (*range(start), 9)


async def _journal_then_snapshot(store: Store, make: Make, lease: Lease, delay: float) -> None:
    await asyncio.sleep(delay)
    await make.written(store, make.entry(lease, 0, [0, 1, 2]))
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
