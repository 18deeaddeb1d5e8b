"""Rule 6 of server/store/base.py, for every store: what is gone is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.errors import (
    NotFound,
)
from server.store.base import Lease, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE = "sess_one"


async def test_rule_6_a_deleted_session_is_nowhere(store: Store, make: Make) -> None:
    lease = await _full_session(store, make)
    await store.delete(TENANT, ONE)
    await _assert_gone(store, make, lease)


async def test_rule_6_an_id_used_again_finds_nothing_of_the_old_session(store: Store, make: Make) -> None:
    await _full_session(store, make)
    await store.delete(TENANT, ONE)
    record = await store.create(make.record())
    loaded = await store.load(ONE)
    assert (loaded.record, loaded.snapshot, tuple(loaded.tail)) == (record, None, ())
    assert await store.operation(ONE, "op_one") is None


async def test_rule_6_an_expired_session_is_not_found_before_and_after_the_sweep(
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


async def test_rule_6_a_sweep_takes_any_number_of_sessions(store: Store, make: Make, clock: Clock) -> None:
    for number in range(120):
        await store.create(make.record(f"sess_{number}", ttl_seconds=1))
    clock.forward(2)
    assert await store.sweep() == 120


async def test_rule_6_a_lifetime_counts_from_the_last_change(store: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store, ttl_seconds=60)
    clock.forward(40)
    await make.appended(store, lease, 1)
    clock.forward(40)
    record = await store.update(TENANT, ONE, metadata={})
    assert record.expires_at == clock.now + 60
    clock.forward(40)
    await store.load(ONE)  # reading is no change
    clock.forward(20)
    with pytest.raises(NotFound):
        await store.get(TENANT, ONE)


async def _full_session(store: Store, make: Make, ttl_seconds: int | None = None) -> Lease:
    lease = await make.begun(store, ttl_seconds=ttl_seconds)
    await make.written(store, make.entry(lease, 0, [1, 2, 3], operation=make.operation()))
    await store.save_snapshot(lease, 2, b"state")
    return lease


async def _assert_gone(store: Store, make: Make, lease: Lease) -> None:
    for call in make.calls(store, ONE):
        with pytest.raises(NotFound):
            await call()
    [outcome] = await store.journal([make.entry(lease, 3, [4])])
    assert isinstance(outcome, NotFound)
    assert ONE not in await make.listed(store)
