"""Whose lease counts among processes that share a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.store.base import LeaseHeld
from server.store.embedded import EmbeddedStore
from tests.server.store.folders import ONE

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make


async def test_a_holder_whose_store_is_closed_is_superseded_at_once(
    embedded: EmbeddedStore, make: Make, folder: Path
) -> None:
    holder = EmbeddedStore(folder)
    await holder.open()
    lease = await make.begun(holder)
    with pytest.raises(LeaseHeld):
        await embedded.acquire(ONE, "server/9/1", 60)
    await holder.close()
    assert (await embedded.acquire(ONE, "server/9/1", 60)).fence == lease.fence + 1


async def test_a_lease_given_in_the_future_counts_as_ended(embedded: EmbeddedStore, make: Make, clock: Clock) -> None:
    """Else a clock that was an hour ahead would keep a session from everybody for an hour."""
    clock.forward(3_600)
    lease = await make.begun(embedded)
    clock.forward(-3_600)
    assert (await embedded.acquire(ONE, "server/9/1", 60)).fence == lease.fence + 1
    with pytest.raises(LeaseHeld):
        await embedded.acquire(ONE, "server/0/1", 60)


async def test_a_sweep_removes_the_locks_of_the_dead(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    dead = EmbeddedStore(folder)
    await dead.open()
    await make.begun(dead, owner="server/8/1")
    await embedded.acquire(ONE, "server/8/2", 60)
    await dead.close()
    assert len(list((folder / "owners").iterdir())) == 2
    await embedded.sweep()
    assert len(list((folder / "owners").iterdir())) == 1
    with pytest.raises(LeaseHeld):
        await embedded.acquire(ONE, "server/9/1", 60)
