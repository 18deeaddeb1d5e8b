"""What the release before this one left in the embedded store (schema version 1), brought into the tables of today."""

from __future__ import annotations

from typing import Any

import apsw

from server.store.sealing import Sealer

_OLD = ("journal", "operations", "heartbeat", "sessions")
"""Tables of version 1, those that refer to others first."""

_COPY = """
INSERT INTO sessions (id, tenant, model, memory, created_at, updated_at, metadata, ttl_seconds, expires_at, version, tag,
    journaled, open_text, open_tokens, turn, fence, owner)
SELECT id, tenant, model, memory, created_at, updated_at, seal(metadata, tenant, id, 'metadata', 0), ttl_seconds, expires_at,
    version, lower(hex(randomblob(4))), journaled, seal(open_text, tenant, id, 'open_text', journaled),
    open_tokens, turn, fence, owner
FROM old_sessions;

INSERT INTO snapshots SELECT id, 1, snapshot_position, snapshot_name, snapshot_bytes, id, 0
FROM old_sessions WHERE snapshot_name IS NOT NULL;

INSERT INTO journal SELECT session_id, start, length(tokens) / 4, seal(tokens, tenant, session_id, 'journal', start)
FROM old_journal JOIN old_sessions ON id = session_id;

INSERT INTO operations SELECT session_id, op_id, request_digest, tokens, position, NULL, NULL, recorded_at FROM old_operations;
"""


def take_over(connection: apsw.Connection, sealer: Sealer, tables: str) -> None:
    """Make `tables` and copy into them what those of version 1 hold; all in the caller's transaction.

    Snapshot files stay as they are, marked as not sealed: the first two that each session writes replace them.
    """

    def seal(*values: Any) -> bytes:
        content, *about = values
        return sealer.seal(content.encode() if isinstance(content, str) else content, tuple(about))

    for index in connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall():
        connection.execute(f"DROP INDEX {index[0]}")
    for table in _OLD:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute(tables)
    connection.create_scalar_function("seal", seal)
    try:
        connection.execute(_COPY)
    finally:
        connection.create_scalar_function("seal", None)
    for table in _OLD:
        connection.execute(f"DROP TABLE old_{table}")
