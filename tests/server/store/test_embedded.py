"""What only the embedded store can get wrong: the folder, the disk, the schema."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from server.errors import StateRefused, StoreUnavailable
from server.store.embedded import EmbeddedStore
from server.store.embedded_database import Database
from server.store.failures import translated
from server.store.schema import SCHEMA_VERSION
from tests.server.store.folders import ONE, TENANT, execute, open_database, session_with_snapshot, snapshot_files

if TYPE_CHECKING:
    from tests.server.store.conftest import Make


@pytest.fixture
def empty_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def make_read_only(folder: Path) -> None:
    folder.chmod(0o500)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: to SQLite and us a disk that fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_the_folder_is_private(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    await session_with_snapshot(embedded, make)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *snapshot_files(folder))}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes


async def test_opening_twice_is_harmless(embedded: EmbeddedStore, make: Make) -> None:
    await session_with_snapshot(embedded, make)
    await embedded.open()
    assert (await embedded.load(ONE)).snapshot == b"state"


async def test_many_processes_may_create_the_folder_at_once(folder: Path) -> None:
    stores = [EmbeddedStore(folder) for _ in range(8)]
    await asyncio.gather(*(each.open() for each in stores))
    await asyncio.gather(*(each.ping() for each in stores))
    await asyncio.gather(*(each.close() for each in stores))


async def test_a_newer_schema_is_refused(embedded: EmbeddedStore, folder: Path) -> None:
    await embedded.close()
    with open_database(folder) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    await _assert_refused(folder, f"schema version {SCHEMA_VERSION + 1}")


async def test_a_database_of_another_program_is_refused_and_left_alone(empty_folder: Path) -> None:
    with open_database(empty_folder) as connection:
        connection.execute("CREATE TABLE diary (entry TEXT)")
    await _assert_refused(empty_folder, "another program")
    with open_database(empty_folder) as connection:
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


async def test_a_database_that_turns_read_only_is_unavailable(embedded: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded._database.run(execute, "PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await embedded.ping()
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await embedded.journal([make.entry(lease, 3, [3])])
    assert (await embedded.load(ONE)).tail == (2,)


async def test_an_sqlite_that_corrupts_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    await _assert_refused(folder, "Install an apsw wheel")


async def _assert_refused(folder: Path, text: str) -> None:
    store = EmbeddedStore(folder)
    with pytest.raises(StoreUnavailable, match=re.escape(text)):
        await store.open()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


async def test_a_full_database_writes_none_of_the_entries_and_recovers(embedded: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded._database.run(execute, "PRAGMA max_page_count = 1")  # SQLite takes it as: the present size
    small, large = make.entry(lease, 3, [3]), make.entry(lease, 4, range(4, 50_000))
    with pytest.raises(StoreUnavailable, match="full"):
        await embedded.journal([small, large])
    assert (await embedded.get(TENANT, ONE)).journaled == 3
    await embedded._database.run(execute, "PRAGMA max_page_count = 1000000")
    await make.written(embedded, small, large)
    assert (await embedded.load(ONE)).tail == tuple(range(2, 50_000))


async def test_a_disk_that_fails_is_unavailable_and_loses_nothing(
    embedded: EmbeddedStore, make: Make, folder: Path
) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded.ping()
    with files_limited_to((folder / "palimpsest.db-wal").stat().st_size):
        with pytest.raises(StoreUnavailable, match="check the disk"):
            await embedded.journal([make.entry(lease, 3, [3])])
        with pytest.raises(StoreUnavailable):
            await embedded.ping()
        with pytest.raises(StoreUnavailable):
            await embedded.save_snapshot(lease, 3, os.urandom(1 << 20))
    assert len(snapshot_files(folder)) == 1
    loaded = await embedded.load(ONE)
    assert (loaded.snapshot, loaded.tail) == (b"state", (2,))
    await make.written(embedded, make.entry(lease, 3, [3]))
    await embedded.save_snapshot(lease, 4, b"four")
    assert (await embedded.load(ONE)).snapshot == b"four"


async def test_a_lock_held_too_long_is_unavailable(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(embedded, make)
    await embedded._database.run(lambda database: database.connection.set_busy_timeout(20))
    with open_database(folder) as stuck:
        stuck.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await embedded.journal([make.entry(lease, 3, [3])])
        assert (await embedded.load(ONE)).tail == (2,)
        stuck.execute("ROLLBACK")
    await make.written(embedded, make.entry(lease, 3, [3]))


def test_mistakes_in_our_own_sql_are_not_called_an_outage() -> None:
    with pytest.raises(apsw.SQLError), translated():
        apsw.Connection(":memory:").execute("SELEKT")


async def test_a_journal_with_a_hole_is_refused(embedded: EmbeddedStore, make: Make) -> None:
    lease = await session_with_snapshot(embedded, make)
    await make.written(embedded, make.entry(lease, 3, [3]), make.entry(lease, 4, [4]))
    await embedded._database.run(execute, "DELETE FROM journal WHERE start = 3")
    with pytest.raises(StateRefused, match="gap"):
        await embedded.load(ONE)


async def test_deletion_leaves_no_byte_of_the_text_behind(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    lease = await session_with_snapshot(embedded, make)
    secret = "the secret that must go"
    tokens = list(secret.encode())
    begins = replace(make.generation(tokens=tokens), request=secret.encode())
    await make.written(embedded, make.entry(lease, 3, tokens, open_text=secret, begins=begins))
    await embedded.update(TENANT, ONE, metadata={"what": secret})
    await embedded.delete(TENANT, ONE)
    assert snapshot_files(folder) == []
    await embedded.close()
    packed = b"".join(byte.to_bytes(4, "little") for byte in secret.encode())
    left = all_bytes(folder)
    assert secret.encode() not in left
    assert packed not in left


async def test_a_commit_reaches_the_disk_before_it_is_acknowledged(embedded: EmbeddedStore) -> None:
    """Killing a process cannot show this, only a power cut could: so look at the settings that promise it."""
    assert await embedded._database.run(_setting, "journal_mode") == "wal"
    assert await embedded._database.run(_setting, "synchronous") == 2
    assert await embedded._database.run(_setting, "foreign_keys") == 1


def _setting(database: Database, name: str) -> object:
    return database.connection.execute(f"PRAGMA {name}").get
