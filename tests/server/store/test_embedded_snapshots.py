"""Snapshot files: how many stay, damaged ones, shared ones, and saves that something comes between."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.errors import NotFound, StaleLease, StateRefused
from server.store import embedded_leases
from server.store.embedded import EmbeddedStore
from tests.server.store.folders import ONE, TENANT, session_with_snapshot, snapshot_files

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make


@pytest.mark.parametrize("generations", [1, 2])
async def test_a_file_a_generation_stays(folder: Path, clock: Clock, make: Make, generations: int) -> None:
    store = EmbeddedStore(folder, clock=clock, generations=generations)
    await store.open()
    lease = await session_with_snapshot(store, make)
    for content in (b"three", b"three again", b"the last"):
        await store.save_snapshot(lease, 3, content)
    await store.save_snapshot(lease, 1, b"older")
    assert len(snapshot_files(folder)) == generations
    rows = await store._database.run(lambda database: database.rows("SELECT start FROM journal", {}))
    assert rows == []
    await store.close()


async def test_the_journal_is_kept_from_the_oldest_generation_on(embedded: EmbeddedStore, make: Make) -> None:
    lease = await make.begun(embedded)
    kept = []
    for position in range(1, 5):
        await make.appended(embedded, lease, position)
        await embedded.save_snapshot(lease, position, b"state")
        rows = await embedded._database.run(lambda database: database.rows("SELECT start FROM journal", {}))
        kept.append([start for (start,) in rows])
    assert kept == [[0], [1], [2], [3]]


async def test_a_refused_snapshot_leaves_no_file(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded.delete(TENANT, ONE)
    with pytest.raises(NotFound):
        await embedded.save_snapshot(lease, 3, b"late")
    assert snapshot_files(folder) == []


async def test_a_snapshot_whose_lease_goes_while_it_is_written_leaves_no_file(
    embedded: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(embedded, make)
    write = embedded._snapshots._files.write

    def write_and_lose_the_lease(session_id: str, content: bytes) -> str:
        embedded._database.wait(embedded_leases.acquire, session_id, "server/0/2", 60, embedded._owners, time.time())
        return write(session_id, content)

    monkeypatch.setattr(embedded._snapshots._files, "write", write_and_lose_the_lease)
    with pytest.raises(StaleLease):
        await embedded.save_snapshot(lease, 3, b"late")
    assert len(snapshot_files(folder)) == 1
    assert (await embedded.load(ONE)).snapshot == b"state"


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "longer": content + b"x", "flipped": content[:-1] + b"?"}[damage])


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "flipped"])
async def test_a_damaged_snapshot_file_is_passed_over(
    embedded: EmbeddedStore, make: Make, folder: Path, damage: str
) -> None:
    lease = await make.begun(embedded)
    for token in range(4):
        await make.appended(embedded, lease, token)
    await embedded.save_snapshot(lease, 2, b"two")
    before = set(snapshot_files(folder))
    await embedded.save_snapshot(lease, 3, b"three")
    [newest] = set(snapshot_files(folder)) - before
    _damage(newest, damage)
    loaded = await embedded.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail, loaded.skipped) == (b"two", 2, (2, 3), 1)
    [oldest] = before
    _damage(oldest, damage)
    with pytest.raises(StateRefused, match="backup"):
        await embedded.load(ONE)


async def test_with_the_only_snapshot_damaged_the_journal_is_enough(
    embedded: EmbeddedStore, make: Make, folder: Path
) -> None:
    await session_with_snapshot(embedded, make)
    [path] = snapshot_files(folder)
    path.write_bytes(b"rubbish")
    loaded = await embedded.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail, loaded.skipped) == (None, 0, (0, 1, 2), 1)


async def test_a_sector_that_cannot_be_read_is_damage(
    embedded: EmbeddedStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    await session_with_snapshot(embedded, make)

    def failing(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert (await embedded.load(ONE)).skipped == 1


async def test_a_file_is_shared_by_forks_and_goes_with_the_last(
    embedded: EmbeddedStore, make: Make, folder: Path
) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded.fork(TENANT, ONE, make.record("sess_child"))
    assert len(snapshot_files(folder)) == 1  # nothing was copied
    await embedded.save_snapshot(lease, 3, b"three")
    await embedded.save_snapshot(lease, 3, b"three again")
    assert len(snapshot_files(folder)) == 3
    await embedded.delete(TENANT, ONE)
    assert len(snapshot_files(folder)) == 1
    assert (await embedded.load("sess_child")).snapshot == b"state"
    await embedded.delete(TENANT, "sess_child")
    assert snapshot_files(folder) == []


async def test_an_adoption_that_was_there_already_leaves_no_file(
    embedded: EmbeddedStore, make: Make, folder: Path
) -> None:
    for _ in range(2):
        await embedded.adopt(make.record(journaled=3), b"state", [2])
    assert len(snapshot_files(folder)) == 1


async def test_a_journal_commit_does_not_wait_for_a_snapshot_file(
    embedded: EmbeddedStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(embedded, make)
    write = embedded._snapshots._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.4)
        return write(session_id, content)

    monkeypatch.setattr(embedded._snapshots._files, "write", write_slowly)
    async with asyncio.TaskGroup() as group:
        saving = group.create_task(embedded.save_snapshot(lease, 3, b"three"))
        await asyncio.sleep(0.05)
        await make.written(embedded, make.entry(lease, 3, [3]))
        assert (await embedded.load(ONE)).snapshot == b"state"
        assert not saving.done()
    loaded = await embedded.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"three", (3,))


async def test_a_cancelled_save_is_finished_all_the_same(
    embedded: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(embedded, make)
    write = embedded._snapshots._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.1)
        return write(session_id, content)

    monkeypatch.setattr(embedded._snapshots._files, "write", write_slowly)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(embedded.save_snapshot(lease, 3, b"three"), timeout=0.02)
    await embedded.close()
    again = EmbeddedStore(folder)
    await again.open()
    assert (await again.load(ONE)).snapshot == b"three"
    await again.close()
    assert len(snapshot_files(folder)) == 2
