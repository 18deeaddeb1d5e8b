"""The embedded store's database: its tables, and how a connection to it is opened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from server.errors import StoreUnavailable

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50414C49
"""Marks the file as ours ("PALI"), so that a database of something else is never written to."""
_SAFE_SQLITE = (3, 51, 3)
"""Older ones can corrupt a write-ahead log that several connections write."""
_BUSY_MILLISECONDS = 5_000

_TABLES = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    memory TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    metadata TEXT NOT NULL,
    ttl_seconds INTEGER,
    expires_at REAL,
    version INTEGER NOT NULL,
    journaled INTEGER NOT NULL,
    open_text TEXT NOT NULL,
    open_tokens INTEGER NOT NULL,
    turn TEXT NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    snapshot_name TEXT,
    snapshot_bytes INTEGER NOT NULL DEFAULT 0,
    snapshot_position INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX sessions_by_creation ON sessions (tenant, created_at, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX sessions_by_snapshot ON sessions (snapshot_name) WHERE snapshot_name IS NOT NULL;

CREATE TABLE journal (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    PRIMARY KEY (session_id, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    op_id TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    position INTEGER NOT NULL,
    recorded_at REAL NOT NULL,
    PRIMARY KEY (session_id, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX operations_by_age ON operations (recorded_at);

CREATE TABLE heartbeat (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    beats INTEGER NOT NULL
) STRICT;
INSERT INTO heartbeat VALUES (1, 0);
"""


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """One write transaction that holds the write lock from its first statement; undone if anything fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk makes SQLite roll back by itself
            connection.execute("ROLLBACK")
        raise


@contextmanager
def reading(connection: apsw.Connection) -> Iterator[None]:
    """One read transaction: every statement in it sees the same moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def connect(path: Path) -> apsw.Connection:
    """Open the database, creating its tables if it is new.

    Raises `StoreUnavailable` for a database that a newer version or another program made, and for an SQLite
    with a bug that loses data; `apsw.Error` for the rest.
    """
    _refuse_unsafe_sqlite()
    connection = apsw.Connection(str(path))
    try:
        _configure(connection)
        with transaction(connection):
            _create_or_check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_unsafe_sqlite() -> None:
    found = apsw.sqlite_lib_version()
    if tuple(int(part) for part in found.split(".")[:3]) < _SAFE_SQLITE:
        raise StoreUnavailable(
            f"SQLite {found} can corrupt a database that several processes write. "
            f"Install an apsw wheel that brings {'.'.join(map(str, _SAFE_SQLITE))} or newer."
        )


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    _use_write_ahead_log(connection)
    for setting in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


def _use_write_ahead_log(connection: apsw.Connection) -> None:
    # Two processes that open a new database at once would each wait for the other's lock; SQLite
    # answers "busy" at
    # once then, without minding the timeout.
    give_up = time.monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").get
        except apsw.BusyError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)
        else:
            break
    if mode != "wal":
        raise StoreUnavailable(
            f"This file system cannot hold a database that several processes write "
            f"(SQLite offers {mode!r} mode). Put the data folder on a local disk."
        )


def _create_or_check(connection: apsw.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").get
    application = connection.execute("PRAGMA application_id").get
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").get
    if empty and application == 0 and version == 0:
        connection.execute(_TABLES)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != _APPLICATION_ID:
        raise StoreUnavailable(f"{path} is a database of another program. Choose another data folder.")
    elif version != SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path} has schema version {version} and this server reads {SCHEMA_VERSION}. "
            "Run the version of the server that wrote it, or choose another data folder."
        )
