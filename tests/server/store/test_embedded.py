"""What only the embedded store can get wrong: processes that die, files, the disk, the schema."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from server.errors import NotFound, StaleLease, StateRefused, StoreUnavailable
from server.store import embedded_journal, embedded_sessions
from server.store.base import Lease
from server.store.embedded import EmbeddedStore
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
    await store.create(make.record(session_id))
    lease = await store.acquire(session_id, "worker")
    assert await store.journal([make.entry(lease, 0, [0, 1, 2])]) == [None]
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
    await store._transact(_execute, "PRAGMA query_only = ON")
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


def _execute(connection: apsw.Connection, statement: str) -> None:
    connection.execute(statement)


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
    await store._transact(_execute, "PRAGMA max_page_count = 1")  # SQLite takes it as: the present size
    small, large = make.entry(lease, 3, [3]), make.entry(lease, 4, range(4, 50_000))
    with pytest.raises(StoreUnavailable, match="full"):
        await store.journal([small, large])
    assert (await store.get(TENANT, ONE)).journaled == 3
    await store._transact(_execute, "PRAGMA max_page_count = 1000000")
    assert await store.journal([small, large]) == [None, None]
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
            await store.save_snapshot(lease, 3, b"x" * (1 << 20))
    assert len(snapshot_files(folder)) == 1
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"state", (2,))
    assert await store.journal([make.entry(lease, 3, [3])]) == [None]
    await store.save_snapshot(lease, 4, b"four")
    assert (await store.load(ONE)).snapshot == b"four"


async def test_a_lock_held_too_long_is_unavailable(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    await store._transact(apsw.Connection.set_busy_timeout, 20)
    with _database(folder) as stuck:
        stuck.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.journal([make.entry(lease, 3, [3])])
        assert (await store.load(ONE)).tail == (2,)
        stuck.execute("ROLLBACK")
    assert await store.journal([make.entry(lease, 3, [3])]) == [None]


def test_mistakes_in_our_own_sql_are_not_called_an_outage() -> None:
    with pytest.raises(apsw.SQLError), translated():
        apsw.Connection(":memory:").execute("SELEKT")


# Snapshot files


async def test_one_file_a_session_stays(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    await store.save_snapshot(lease, 3, b"three")
    await store.save_snapshot(lease, 1, b"older")
    assert [path.read_bytes() for path in snapshot_files(folder)] == [b"three"]


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
    write = store._files.write

    def write_and_lose_the_lease(session_id: str, content: bytes) -> str:
        store._transact_from_thread(embedded_journal.acquire, session_id, "newer", time.time())
        return write(session_id, content)

    monkeypatch.setattr(store._files, "write", write_and_lose_the_lease)
    with pytest.raises(StaleLease):
        await store.save_snapshot(lease, 3, b"late")
    assert [path.read_bytes() for path in snapshot_files(folder)] == [b"state"]


@pytest.mark.parametrize("damage", ["missing", "cut", "longer"])
async def test_a_damaged_snapshot_file_is_refused(store: EmbeddedStore, make: Make, folder: Path, damage: str) -> None:
    await session_with_snapshot(store, make)
    await session_with_snapshot(store, make, "sess_two")
    [path] = (folder / "snapshots").glob(f"{ONE}.*")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"sta" if damage == "cut" else b"states")
    with pytest.raises(StateRefused, match="backup"):
        await store.load(ONE)
    assert (await store.load("sess_two")).snapshot == b"state"


async def test_a_journal_with_a_hole_is_refused(store: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(store, make)
    assert await store.journal([make.entry(lease, 3, [3]), make.entry(lease, 4, [4])]) == [None, None]
    await store._transact(_execute, "DELETE FROM journal WHERE start = 3")
    with pytest.raises(StateRefused, match="gap"):
        await store.load(ONE)


async def test_deletion_leaves_no_byte_of_the_text_behind(store: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(store, make)
    secret = "the secret that must go"
    assert await store.journal([make.entry(lease, 3, list(secret.encode()), open_text=secret)]) == [None]
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
    write = store._files.write

    def write_and_stall(session_id: str, content: bytes) -> str:
        name = write(session_id, content)
        grow_old(folder / "snapshots" / name)
        old = store._files.older_than(60)
        store._transact_from_thread(embedded_sessions.remove_unreferenced, old, store._files.remove)
        return name

    monkeypatch.setattr(store._files, "write", write_and_stall)
    with pytest.raises(StoreUnavailable, match="written again"):
        await store.save_snapshot(lease, 3, b"stalled")
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail) == (b"state", 2, (2,))


async def test_a_journal_commit_does_not_wait_for_a_snapshot_file(
    store: EmbeddedStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(store, make)
    write = store._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.4)
        return write(session_id, content)

    monkeypatch.setattr(store._files, "write", write_slowly)
    async with asyncio.TaskGroup() as group:
        saving = group.create_task(store.save_snapshot(lease, 3, b"three"))
        await asyncio.sleep(0.05)
        assert await store.journal([make.entry(lease, 3, [3])]) == [None]
        assert (await store.load(ONE)).snapshot == b"state"
        assert not saving.done()
    loaded = await store.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"three", (3,))


async def test_a_cancelled_save_is_finished_all_the_same(
    store: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await session_with_snapshot(store, make)
    write = store._files.write

    def write_slowly(session_id: str, content: bytes) -> str:
        time.sleep(0.1)
        return write(session_id, content)

    monkeypatch.setattr(store._files, "write", write_slowly)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.save_snapshot(lease, 3, b"three"), timeout=0.02)
    await store.close()
    again = EmbeddedStore(folder)
    await again.open()
    assert (await again.load(ONE)).snapshot == b"three"
    await again.close()
    assert len(snapshot_files(folder)) == 1


async def test_a_commit_reaches_the_disk_before_it_is_acknowledged(store: EmbeddedStore) -> None:
    """Killing a process cannot show this, only a power cut could: so look at the settings that promise it."""
    assert await store._transact(_setting, "journal_mode") == "wal"
    assert await store._transact(_setting, "synchronous") == 2
    assert await store._transact(_setting, "foreign_keys") == 1


def _setting(connection: apsw.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").get
