"""The embedded store's database: its tables, and how a connection to it is opened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from server.errors import StoreUnavailable
from server.store.embedded_migration import take_over
from server.store.sealing import Sealer

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x50414C49
"""Marks the file as ours ("PALI"), so that a database of something else is never written to."""
_SAFE_SQLITE = (3, 51, 3)
"""Older ones can corrupt a write-ahead log that several connections write."""
_BUSY_MILLISECONDS = 800
"""How long a statement waits for another process's lock: an answer is due within a second."""
_OPEN_SECONDS = 5.0
"""How long opening may wait for it: the tables may be being made."""

_TABLES = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    memory TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    metadata BLOB NOT NULL,
    ttl_seconds INTEGER,
    expires_at REAL,
    version INTEGER NOT NULL,
    tag TEXT NOT NULL,
    journaled INTEGER NOT NULL,
    open_text BLOB NOT NULL,
    open_tokens INTEGER NOT NULL,
    turn TEXT NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_from REAL NOT NULL DEFAULT 0,
    lease_until REAL NOT NULL DEFAULT 0,
    declined_until REAL NOT NULL DEFAULT 0,
    wanted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX sessions_by_creation ON sessions (tenant, created_at, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX sessions_by_wanted ON sessions (owner) WHERE wanted = 1;

CREATE TABLE snapshots (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    position INTEGER NOT NULL,
    file TEXT NOT NULL,
    size INTEGER NOT NULL,
    writer TEXT NOT NULL,
    sealed INTEGER NOT NULL,
    PRIMARY KEY (session_id, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_by_file ON snapshots (file);

CREATE TABLE journal (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    count INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    PRIMARY KEY (session_id, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    op_id TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    position INTEGER NOT NULL,
    generation_id TEXT,
    etag TEXT,
    recorded_at REAL NOT NULL,
    PRIMARY KEY (session_id, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX operations_by_age ON operations (recorded_at);

CREATE TABLE generations (
    id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    request BLOB NOT NULL,
    start INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    reason TEXT,
    sampled INTEGER,
    position INTEGER,
    recorded_at REAL NOT NULL
) STRICT;
CREATE INDEX generations_by_session ON generations (session_id);
CREATE INDEX generations_by_age ON generations (recorded_at);

CREATE TABLE generation_tokens (
    generation_id TEXT NOT NULL REFERENCES generations (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    count INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    PRIMARY KEY (generation_id, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE claims (
    tenant TEXT NOT NULL,
    op_id TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    session_id TEXT NOT NULL,
    answer BLOB,
    recorded_at REAL NOT NULL,
    PRIMARY KEY (tenant, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_by_age ON claims (recorded_at);

CREATE TABLE clock (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    boot TEXT NOT NULL,
    ahead REAL NOT NULL
) STRICT;

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


def connect(path: Path, sealer: Sealer) -> apsw.Connection:
    """Open the database, creating its tables if it is new, and taking over what version 1 left.

    Raises `StoreUnavailable` for a database that a newer version or another program made, and for an SQLite
    with a bug that loses data; `apsw.Error` for the rest.
    """
    _refuse_unsafe_sqlite()
    connection = apsw.Connection(str(path))
    try:
        _configure(connection)
        with transaction(connection):
            _create_or_check(connection, path, sealer)
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
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
    connection.set_busy_timeout(int(_OPEN_SECONDS * 1000))
    _use_write_ahead_log(connection)
    for setting in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


def _use_write_ahead_log(connection: apsw.Connection) -> None:
    # Two processes that open a new database at once would each wait for the other's lock; SQLite answers "busy" at once then,
    # without minding the timeout.
    give_up = time.monotonic() + _OPEN_SECONDS
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


def _create_or_check(connection: apsw.Connection, path: Path, sealer: Sealer) -> None:
    version = connection.execute("PRAGMA user_version").get
    application = connection.execute("PRAGMA application_id").get
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").get
    if empty and application == 0 and version == 0:
        connection.execute(_TABLES)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != _APPLICATION_ID:
        raise StoreUnavailable(f"{path} is a database of another program. Choose another data folder.")
    elif version == 1:
        take_over(connection, sealer, _TABLES)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path} has schema version {version} and this server reads {SCHEMA_VERSION}. "
            "Run the version of the server that wrote it, or choose another data folder."
        )
