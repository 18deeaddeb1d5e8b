"""A folder that the release before this one wrote is taken over whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.errors import NotFound, StoreUnavailable
from server.store.embedded import EmbeddedStore
from server.store.sealing import Sealer
from tests.server.store.folders import open_database

if TYPE_CHECKING:
    from tests.server.store.conftest import Make

_VERSION_1 = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, model TEXT NOT NULL, memory TEXT NOT NULL, created_at REAL NOT NULL,
    updated_at REAL NOT NULL, metadata TEXT NOT NULL, ttl_seconds INTEGER, expires_at REAL, version INTEGER NOT NULL,
    journaled INTEGER NOT NULL, open_text TEXT NOT NULL, open_tokens INTEGER NOT NULL, turn TEXT NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0, owner TEXT, snapshot_name TEXT, snapshot_bytes INTEGER NOT NULL DEFAULT 0,
    snapshot_position INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX sessions_by_creation ON sessions (tenant, created_at, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX sessions_by_snapshot ON sessions (snapshot_name) WHERE snapshot_name IS NOT NULL;
CREATE TABLE journal (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, start INTEGER NOT NULL, tokens BLOB NOT NULL,
    PRIMARY KEY (session_id, start)
) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, op_id TEXT NOT NULL, request_digest TEXT NOT NULL,
    tokens INTEGER NOT NULL, position INTEGER NOT NULL, recorded_at REAL NOT NULL, PRIMARY KEY (session_id, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX operations_by_age ON operations (recorded_at);
CREATE TABLE heartbeat (only INTEGER PRIMARY KEY CHECK (only = 1), beats INTEGER NOT NULL) STRICT;
INSERT INTO heartbeat VALUES (1, 5);
PRAGMA application_id = 0x50414C49;
PRAGMA user_version = 1;

INSERT INTO sessions VALUES ('sess_one', 'tenant', 'model', 'window', 1.5, 2.5, '{"title": "na\u00efve"}', NULL, NULL, 7,
    5, 'op\u00e9n', 2, 'asked', 3, 'worker', 'sess_one.00ff.snapshot', 5, 2);
INSERT INTO journal VALUES ('sess_one', 1, X'01000000FFFFFFFF'), ('sess_one', 3, X'0300000004000000');
INSERT INTO operations VALUES ('sess_one', 'op_one', 'digest', 3, 7, 9e9);
INSERT INTO sessions VALUES ('sess_two', 'tenant', 'model', 'window', 2.5, 2.5, '{}', 60, 9e9, 1, 0, '', 0, 'none', 0, NULL,
    NULL, 0, 0);
INSERT INTO sessions VALUES ('sess_past', 'tenant', 'model', 'window', 1.0, 1.0, '{}', 60, 61.0, 1, 0, '', 0, 'none', 0, NULL,
    NULL, 0, 0);
"""


@pytest.fixture
def old_folder(folder: Path) -> Path:
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / "sess_one.00ff.snapshot").write_bytes(b"state")
    with open_database(folder) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_VERSION_1)
    return folder


async def test_everything_is_there_and_goes_on(old_folder: Path, make: Make) -> None:
    store = EmbeddedStore(old_folder)
    await store.open()
    loaded = await store.load("sess_one")
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail, loaded.skipped) == (
        b"state",
        2,
        (2**32 - 1, 3, 4),
        0,
    )
    record = loaded.record
    assert (record.metadata, record.created_at, record.updated_at) == ({"title": "na\u00efve"}, 1.5, 2.5)
    assert (record.version, record.journaled, record.open_text, record.turn) == (7, 5, "op\u00e9n", "asked")
    assert len(record.tag) == 8
    assert await store.operation("sess_one", "op_one") == make.operation()
    with pytest.raises(NotFound):
        await store.get("tenant", "sess_past")
    lease = await store.acquire("sess_one", "server/0/1", 60)
    assert lease.fence == 4  # a worker of the old release is still refused
    await make.appended(store, lease, 5)
    await store.save_snapshot(lease, 6, b"six")
    await store.fork("tenant", "sess_one", make.record("sess_child"))
    await store.save_snapshot(lease, 6, b"six again")
    await store.delete("tenant", "sess_one")
    child = await store.load("sess_child")
    assert (child.snapshot, child.tail) == (b"six", ())
    assert await store.sweep() == 1
    await store.close()


async def test_a_folder_is_taken_over_once(old_folder: Path) -> None:
    for _ in range(3):
        store = EmbeddedStore(old_folder)
        await store.open()
        record = await store.get("tenant", "sess_one")
        assert (await store.load("sess_one")).record == record
        await store.close()
    with open_database(old_folder) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        assert not {name for name in tables if name.startswith("old_")}
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").get == "ok"


async def test_what_was_plain_is_encrypted(old_folder: Path, encrypting: Sealer) -> None:
    store = EmbeddedStore(old_folder, sealer=encrypting)
    await store.open()
    assert (await store.load("sess_one")).record.open_text == "op\u00e9n"
    await store.close()
    left = (old_folder / "palimpsest.db").read_bytes()
    assert "op\u00e9n".encode() not in left
    assert bytes.fromhex("0300000004000000") not in left


class Failing:
    """A sealer that gives up in the midst of the work."""

    def seal(self, content: bytes, about: tuple[str | int, ...]) -> bytes:
        if "journal" in about:
            raise OSError(28, "No space left on device")
        return content

    def open(self, sealed: bytes, about: tuple[str | int, ...]) -> bytes:
        return sealed


async def test_a_take_over_that_fails_leaves_the_old_folder(old_folder: Path) -> None:
    store = EmbeddedStore(old_folder, sealer=Failing())
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.close()
    with open_database(old_folder) as connection:
        assert connection.execute("PRAGMA user_version").get == 1
    again = EmbeddedStore(old_folder)
    await again.open()
    assert (await again.load("sess_one")).snapshot == b"state"
    await again.close()
