"""Rules 4 and 5 of server/store/base.py, for every store: snapshots."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from server.errors import StaleLease, StateRefused
from server.store.base import Lease, Store
from server.store.sealing import PlainSealer

if TYPE_CHECKING:
    from tests.server.store.conftest import Bench, Make, OpenAnother

TENANT = "tenant"
ONE = "sess_one"


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 6])
async def test_rule_4_snapshot_and_tail_are_the_whole_session(store: Store, make: Make, position: int) -> None:
    lease = await make.begun(store)
    for tokens in ([0, 1, 2], [3], [4, 5]):
        await make.appended(store, lease, *tokens)
    before = await store.get(TENANT, ONE)
    await store.save_snapshot(lease, position, b"state")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position) == (b"state", position)
    assert tuple(loaded.tail) == tuple(range(position, 6))
    assert loaded.record == before
    await make.appended(store, lease, 6)
    assert tuple((await store.load(ONE)).tail) == tuple(range(position, 7))


async def test_rule_4_an_older_snapshot_is_ignored_and_an_equal_one_taken(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 0, 1, 2, 3)
    await store.save_snapshot(lease, 3, b"three")
    await store.save_snapshot(lease, 2, b"two")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail)) == (b"three", 3, (3,))
    await store.save_snapshot(lease, 3, b"three again")
    assert (await store.load(ONE)).snapshot == b"three again"


@pytest.mark.parametrize("position", [3, -1])
async def test_rule_4_a_snapshot_of_what_was_never_journaled_is_refused(
    store: Store, make: Make, position: int
) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 0, 1)
    with pytest.raises(StaleLease):
        await store.save_snapshot(lease, position, b"invented")
    assert (await store.load(ONE)).snapshot is None


async def test_rule_4_an_empty_snapshot_is_a_snapshot(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await store.save_snapshot(lease, 0, b"")
    assert (await store.load(ONE)).snapshot == b""


async def test_rule_4_loads_while_snapshots_change_are_of_one_moment(
    store: Store, another: OpenAnother, make: Make
) -> None:
    lease = await make.begun(store)
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
        await make.written(store, make.entry(lease, number, [number]))
        await store.save_snapshot(lease, number + 1, str(number + 1).encode())


async def _load_until(store: Store, rounds: int) -> None:
    journaled = 0
    while journaled < rounds:
        loaded = await store.load(ONE)
        assert loaded.record.journaled >= journaled
        journaled = loaded.record.journaled
        assert int(loaded.snapshot or b"0") == loaded.snapshot_position
        assert tuple(loaded.tail) == tuple(range(loaded.snapshot_position, journaled))


# Rule 5: generations


async def test_a_session_without_snapshots_is_its_journal(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 0, 1)
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail), loaded.skipped) == (None, 0, (0, 1), 0)


@pytest.mark.parametrize("generations", [1, 2])
async def test_snapshots_one_after_the_other_lose_nothing(bench: Bench, make: Make, generations: int) -> None:
    store = bench.store(generations=generations)
    await store.open()
    try:
        lease = await make.begun(store)
        for position in range(1, 6):
            await make.appended(store, lease, position - 1)
            await store.save_snapshot(lease, position, b"state %d" % position)
        await make.appended(store, lease, 5)
        loaded = await store.load(ONE)
        assert (loaded.snapshot, loaded.snapshot_position, loaded.skipped) == (b"state 5", 5, 0)
        assert tuple(loaded.tail) == (5,)
    finally:
        await store.close()


async def test_a_snapshot_that_does_not_open_is_passed_over(bench: Bench, make: Make) -> None:
    sealer = Moody()
    store = bench.store(sealer=sealer)
    await store.open()
    try:
        lease = await make.begun(store)
        for token in range(3):
            await make.appended(store, lease, token)
        await store.save_snapshot(lease, 1, b"one")
        sealer.refused = {b"one"}
        loaded = await store.load(ONE)
        assert (loaded.snapshot, tuple(loaded.tail), loaded.skipped) == (None, (0, 1, 2), 1)
        await store.save_snapshot(lease, 2, b"two")
        assert (await store.load(ONE)).snapshot == b"two"
        await store.save_snapshot(lease, 3, b"three")
        sealer.refused = {b"three"}
        loaded = await store.load(ONE)
        assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail)) == (b"two", 2, (2,))
        assert loaded.skipped == 1
        sealer.refused = {b"two", b"three"}
        with pytest.raises(StateRefused):
            await store.load(ONE)
        sealer.refused = set()
        assert (await store.load(ONE)).snapshot == b"three"
    finally:
        await store.close()


class Moody:
    """Seals plainly, and refuses to open what it is told to."""

    def __init__(self) -> None:
        self.refused: set[bytes] = set()
        self.plain = PlainSealer()

    def seal(self, content: bytes, about: tuple[str | int, ...]) -> bytes:
        return self.plain.seal(content, about)

    def open(self, sealed: bytes, about: tuple[str | int, ...]) -> bytes:
        content = self.plain.open(sealed, about)
        if content in self.refused:
            raise StateRefused("told to refuse")
        return content
