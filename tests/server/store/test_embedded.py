"""What only the embedded store can get wrong: processes that die, files, the disk, the schema."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from server.errors import NotFound, StaleLease, StateRefused, StoreUnavailable
from server.store import embedded_leases, embedded_snapshots
from server.store.base import Lease, LeaseHeld
from server.store.embedded import EmbeddedStore
from server.store.embedded_database import Database
from server.store.failures import translated
from server.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

ONE = "sess_one"
TENANT = "tenant"


@pytest.fixture
async def store(folder: Path, clock: Clock) -> AsyncIterator[EmbeddedStore]:
    store = EmbeddedStore(folder, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def empty_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def snapshot_files(folder: Path) -> list[Path]:
    return sorted((folder / "snapshots").iterdir())


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def make_read_only(folder: Path) -> None:
    folder.chmod(0o500)


def grow_old(path: Path, seconds: float = 120) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


async def session_with_snapshot(store: EmbeddedStore, make: Make, session_id: str = ONE) -> Lease:
    lease = await make.begun(store, session_id)
    await make.written(store, make.entry(lease, 0, [0, 1, 2]))
    await store.save_snapshot(lease, 2, b"state")
    return lease


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: to SQLite and us a disk that fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The folder


async def test_the_folder_is_private(store: EmbeddedStore, make: Make, folder: Path) -> None:
    await session_with_snapshot(store, make)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *snapshot_files(folder))}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes


async def test_opening_twice_is_harmless(store: EmbeddedStore, make: Make) -> None:
    await session_with_snapshot(store, make)
    await store.open()
    assert (await store.load(ONE)).snapshot == b"state"


async def test_many_processes_may_create_the_folder_at_once(folder: Path) -> None:
    stores = [EmbeddedStore(folder) for _ in range(8)]
    await asyncio.gather(*(each.open() for each in stores))
    await asyncio.gather(*(each.ping() for each in stores))
    await asyncio.gather(*(each.close() for each in stores))


async def test_a_newer_schema_is_refused(store: EmbeddedStore, folder: Path) -> None:
    await store.close()
    with _database(folder) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    await _assert_refused(folder, f"schema version {SCHEMA_VERSION + 1}")


async def test_a_database_of_another_program_is_refused_and_left_alone(empty_folder: Path) -> None:
    with _database(empty_folder) as connection:
        connection.execute("CREATE TABLE diary (entry TEXT)")
    await _assert_refused(empty_folder, "another program")
    with _database(empty_folder) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("diary",)]


async def test_a_file_that_is_no_database_is_refused(empty_folder: Path) -> None:
    (empty_folder / "palimpsest.db").write_bytes(b"not a database" * 1_000)
    await _assert_refused(empty_folder, "damaged")


async def test_a_file_in_place_of_the_folder_is_refused(empty_folder: Path) -> None:
    (empty_folder / "in the way").write_bytes(b"a file")
    await _assert_refused(empty_folder / "in the way", "cannot be opened")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_folder_is_refused(empty_folder: Path) -> None:
    make_read_only(empty_folder)
    await _assert_refused(empty_folder, "data folder")


async def test_a_database_that_turns_read_only_is_unavailable(store: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(store, make)
    await store._database.run(_execute, "PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await store.ping()
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await store.journal([make.entry(lease, 3, [3])])
    assert (await store.load(ONE)).tail == (2,)


async def test_an_sqlite_that_corrupts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    await _assert_refused(folder, "Install an apsw wheel")


@contextmanager
def _database(folder: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(folder / "palimpsest.db"))
    yield connection
    connection.close()


def _sizes(database: Database, tables: Sequence[str]) -> list[int]:
    return [len(database.rows(f"SELECT 1 FROM {table}", {})) for table in tables]


def _execute(database: Database, statement: str) -> None:
    database.connection.execute(statement)


async def _assert_refused(folder: Path, text: str) -> None:
    store = EmbeddedStore(folder)
    with pytest.raises(StoreUnavailable, match=re.escape(text)):
        await store.open()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


# A disk that fails


async def test_a_full_database_writes_none_of_the_entries_and_recovers(store: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(store, make)
    await store._database.run(_execute, "PRAGMA max_page_count = 1")  # SQLite takes it as: the present size
    small, large = make.entry(lease, 3, [3]), make.entry(lease, 4, range(4, 50_000))
    with pytest.raises(StoreUnavailable, match="full"):
        await store.journal([small, large])
    assert (await store.get(TENANT, ONE)).journaled == 3
    await store._database.run(_execute, "PRAGMA max_page_count = 1000000")
    await make.written(store, small, large)
    assert (await store.load(ONE)).tail == tuple(range(2, 50_000))


async def test_a_disk_that_fails_is_unavailable_and_loses_nothing(
    store: EmbeddedStore, make: Make, folder: Path
) -> None:
    lease = await session_with_snapshot(store, make)
    await store.ping()
    with files_limited_to((folder / "palimpsest.db-wal").stat().st_size):
        with pytest.raises(StoreUnavailable, match="check the disk"):
            await store.journal([make.entry(lease, 3, [3])])
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            await store.save_snapshot(lease, 3, os.urandom(1 << 20))
    assert len(snapshot_files(folder)) == 1
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"state", (2,))
    await make.written(store, make.entry(lease, 3, [3]))
    await store.save_snapshot(lease, 4, b"four")
    assert (await store.load(ONE)).snapshot == b"four"


async def test_a_lock_held_too_long_is_unavailable(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    await store._database.run(lambda database: database.connection.set_busy_timeout(20))
    with _database(folder) as stuck:
        stuck.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.journal([make.entry(lease, 3, [3])])
        assert (await store.load(ONE)).tail == (2,)
        stuck.execute("ROLLBACK")
    await make.written(store, make.entry(lease, 3, [3]))


def test_mistakes_in_our_own_sql_are_not_called_an_outage() -> None:
    with pytest.raises(apsw.SQLError), translated():
        apsw.Connection(":memory:").execute("SELEKT")


# Snapshot files


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


async def test_the_journal_is_kept_from_the_oldest_generation_on(store: EmbeddedStore, make: Make) -> None:
    lease = await make.begun(store)
    kept = []
    for position in range(1, 5):
        await make.appended(store, lease, position)
        await store.save_snapshot(lease, position, b"state")
        rows = await store._database.run(lambda database: database.rows("SELECT start FROM journal", {}))
        kept.append([start for (start,) in rows])
    assert kept == [[0], [1], [2], [3]]


async def test_a_refused_snapshot_leaves_no_file(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    await store.delete(TENANT, ONE)
    with pytest.raises(NotFound):
        await store.save_snapshot(lease, 3, b"late")
    assert snapshot_files(folder) == []


async def test_a_snapshot_whose_lease_goes_while_it_is_written_leaves_no_file(
    store: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(store, make)
    write = store._snapshots._files.write

    def write_and_lose_the_lease(session_id: str, content: bytes) -> str:
        store._database.wait(embedded_leases.acquire, session_id, "server/0/2", 60, store._owners, time.time())
        return write(session_id, content)

    monkeypatch.setattr(store._snapshots._files, "write", write_and_lose_the_lease)
    with pytest.raises(StaleLease):
        await store.save_snapshot(lease, 3, b"late")
    assert len(snapshot_files(folder)) == 1
    assert (await store.load(ONE)).snapshot == b"state"


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "longer": content + b"x", "flipped": content[:-1] + b"?"}[damage])


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "flipped"])
async def test_a_damaged_snapshot_file_is_passed_over(
    store: EmbeddedStore, make: Make, folder: Path, damage: str
) -> None:
    lease = await make.begun(store)
    for token in range(4):
        await make.appended(store, lease, token)
    await store.save_snapshot(lease, 2, b"two")
    before = set(snapshot_files(folder))
    await store.save_snapshot(lease, 3, b"three")
    [newest] = set(snapshot_files(folder)) - before
    _damage(newest, damage)
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail, loaded.skipped) == (b"two", 2, (2, 3), 1)
    [oldest] = before
    _damage(oldest, damage)
    with pytest.raises(StateRefused, match="backup"):
        await store.load(ONE)


async def test_with_the_only_snapshot_damaged_the_journal_is_enough(
    store: EmbeddedStore, make: Make, folder: Path
) -> None:
    await session_with_snapshot(store, make)
    [path] = snapshot_files(folder)
    path.write_bytes(b"rubbish")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail, loaded.skipped) == (None, 0, (0, 1, 2), 1)


async def test_a_sector_that_cannot_be_read_is_damage(
    store: EmbeddedStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    await session_with_snapshot(store, make)

    def failing(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert (await store.load(ONE)).skipped == 1


async def test_a_file_is_shared_by_forks_and_goes_with_the_last(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    await store.fork(TENANT, ONE, make.record("sess_child"))
    assert len(snapshot_files(folder)) == 1  # nothing was copied
    await store.save_snapshot(lease, 3, b"three")
    await store.save_snapshot(lease, 3, b"three again")
    assert len(snapshot_files(folder)) == 3
    await store.delete(TENANT, ONE)
    assert len(snapshot_files(folder)) == 1
    assert (await store.load("sess_child")).snapshot == b"state"
    await store.delete(TENANT, "sess_child")
    assert snapshot_files(folder) == []


async def test_an_adoption_that_was_there_already_leaves_no_file(
    store: EmbeddedStore, make: Make, folder: Path
) -> None:
    for _ in range(2):
        await store.adopt(make.record(journaled=3), b"state", [2])
    assert len(snapshot_files(folder)) == 1


async def test_a_journal_with_a_hole_is_refused(store: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(store, make)
    await make.written(store, make.entry(lease, 3, [3]), make.entry(lease, 4, [4]))
    await store._database.run(_execute, "DELETE FROM journal WHERE start = 3")
    with pytest.raises(StateRefused, match="gap"):
        await store.load(ONE)


async def test_deletion_leaves_no_byte_of_the_text_behind(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    secret = "the secret that must go"
    tokens = list(secret.encode())
    begins = replace(make.generation(tokens=tokens), request=secret.encode())
    await make.written(store, make.entry(lease, 3, tokens, open_text=secret, begins=begins))
    await store.update(TENANT, ONE, metadata={"what": secret})
    await store.delete(TENANT, ONE)
    assert snapshot_files(folder) == []
    await store.close()
    packed = b"".join(byte.to_bytes(4, "little") for byte in secret.encode())
    left = all_bytes(folder)
    assert secret.encode() not in left
    assert packed not in left


async def test_a_sweep_takes_old_orphans_only(store: EmbeddedStore, make: Make, folder: Path) -> None:
    await session_with_snapshot(store, make)
    [current] = snapshot_files(folder)
    names = ("sess_x.0a.snapshot", "sess_x.0b.snapshot.partial", "sess_x.0c.snapshot", "notes.txt")
    orphan, half, young, foreign = (folder / "snapshots" / name for name in names)
    for path in (orphan, half, young, foreign):
        path.write_bytes(b"left over")
    for path in (current, orphan, half, foreign):
        grow_old(path)
    assert await store.sweep() == 0
    assert set(snapshot_files(folder)) == {current, young, foreign}
    assert (await store.load(ONE)).snapshot == b"state"


async def test_a_sweep_removes_what_is_remembered_no_longer(store: EmbeddedStore, make: Make, clock: Clock) -> None:
    lease = await make.begun(store)
    begins = make.generation(tokens=[7])
    await make.written(store, make.entry(lease, 0, [7], operation=make.operation(), begins=begins))
    await store.claim(TENANT, "op_one", "digest", ONE)
    tables = ("operations", "generations", "generation_tokens", "claims")

    async def rows() -> list[int]:
        return await store._database.run(_sizes, tables)

    await store.sweep()
    assert await rows() == [1, 1, 1, 1]
    clock.forward(86_400)
    await store.sweep()
    assert await rows() == [0, 0, 0, 0]


async def test_a_sweep_removes_the_files_of_expired_sessions(
    store: EmbeddedStore, make: Make, folder: Path, clock: Clock
) -> None:
    await session_with_snapshot(store, make)
    await store.update(TENANT, ONE, ttl_seconds=10)
    clock.forward(11)
    assert await store.sweep() == 1
    assert snapshot_files(folder) == []


async def test_a_snapshot_that_a_sweep_took_before_its_pointer_is_not_pointed_to(
    store: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer stands still for a minute between its file and its transaction."""
    lease = await session_with_snapshot(store, make)
    write = store._snapshots._files.write

    def write_and_stall(session_id: str, content: bytes) -> str:
        name = write(session_id, content)
        grow_old(folder / "snapshots" / name)
        old = store._snapshots._files.older_than(60)
        store._database.wait(embedded_snapshots.remove_unreferenced, old, store._snapshots._files.remove)
        return name

    monkeypatch.setattr(store._snapshots._files, "write", write_and_stall)
    with pytest.raises(StoreUnavailable, match="written again"):
        await store.save_snapshot(lease, 3, b"stalled")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail) == (b"state", 2, (2,))


async def test_a_journal_commit_does_not_wait_for_a_snapshot_file(
    store: EmbeddedStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(store, make)
    write = store._snapshots._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.4)
        return write(session_id, content)

    monkeypatch.setattr(store._snapshots._files, "write", write_slowly)
    async with asyncio.TaskGroup() as group:
        saving = group.create_task(store.save_snapshot(lease, 3, b"three"))
        await asyncio.sleep(0.05)
        await make.written(store, make.entry(lease, 3, [3]))
        assert (await store.load(ONE)).snapshot == b"state"
        assert not saving.done()
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"three", (3,))


async def test_a_cancelled_save_is_finished_all_the_same(
    store: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(store, make)
    write = store._snapshots._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.1)
        return write(session_id, content)

    monkeypatch.setattr(store._snapshots._files, "write", write_slowly)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.save_snapshot(lease, 3, b"three"), timeout=0.02)
    await store.close()
    again = EmbeddedStore(folder)
    await again.open()
    assert (await again.load(ONE)).snapshot == b"three"
    await again.close()
    assert len(snapshot_files(folder)) == 2


async def test_a_commit_reaches_the_disk_before_it_is_acknowledged(store: EmbeddedStore) -> None:
    """Killing a process cannot show this, only a power cut could: so look at the settings that promise it."""
    assert await store._database.run(_setting, "journal_mode") == "wal"
    assert await store._database.run(_setting, "synchronous") == 2
    assert await store._database.run(_setting, "foreign_keys") == 1


def _setting(database: Database, name: str) -> object:
    return database.connection.execute(f"PRAGMA {name}").get


# Owners


async def test_a_holder_whose_store_is_closed_is_superseded_at_once(
    store: EmbeddedStore, make: Make, folder: Path
) -> None:
    holder = EmbeddedStore(folder)
    await holder.open()
    lease = await make.begun(holder)
    with pytest.raises(LeaseHeld):
        await store.acquire(ONE, "server/9/1", 60)
    await holder.close()
    assert (await store.acquire(ONE, "server/9/1", 60)).fence == lease.fence + 1


async def test_a_lease_given_in_the_future_counts_as_ended(store: EmbeddedStore, make: Make, clock: Clock) -> None:
    """Else a clock that was an hour ahead would keep a session from everybody for an hour."""
    clock.forward(3_600)
    lease = await make.begun(store)
    clock.forward(-3_600)
    assert (await store.acquire(ONE, "server/9/1", 60)).fence == lease.fence + 1
    with pytest.raises(LeaseHeld):
        await store.acquire(ONE, "server/0/1", 60)


async def test_a_sweep_removes_the_locks_of_the_dead(store: EmbeddedStore, make: Make, folder: Path) -> None:
    dead = EmbeddedStore(folder)
    await dead.open()
    await make.begun(dead, owner="server/8/1")
    await store.acquire(ONE, "server/8/2", 60)
    await dead.close()
    assert len(list((folder / "owners").iterdir())) == 2
    await store.sweep()
    assert len(list((folder / "owners").iterdir())) == 1
    with pytest.raises(LeaseHeld):
        await store.acquire(ONE, "server/9/1", 60)
