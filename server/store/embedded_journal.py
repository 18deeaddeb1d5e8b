"""What leases write in the embedded store's database: journal, operations, the pointer to the snapshot.

One function, one transaction; every function blocks. `now` is seconds since the epoch. Tokens are little-
endian uint32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apsw

from server.errors import Internal, OperationMismatch, ServerError, StaleLease, StateRefused, StoreUnavailable
from server.store.base import AlreadyApplied, JournalEntry, Lease, OperationRecord, SessionRecord
from server.store.embedded_sessions import COLUMNS, LIVE, encode_text, expiry, missing, record_from, storable
from server.store.schema import reading, transaction

_TOKEN_BYTES = 4


class _Head(NamedTuple):
    """What a writer must know of a session."""

    fence: int
    journaled: int
    ttl_seconds: int | None
    snapshot_position: int
    snapshot_name: str | None


@dataclass(frozen=True)
class Saved:
    """A session as the database knows it at one moment; the snapshot itself is in the file
    `snapshot_name`."""

    record: SessionRecord
    snapshot_name: str | None
    snapshot_bytes: int
    snapshot_position: int
    tail: Sequence[int]


def acquire(connection: apsw.Connection, session_id: str, owner: str, now: float) -> Lease:
    """Raise the session's fencing number."""
    with transaction(connection):
        fence = connection.execute(
            f"UPDATE sessions SET fence = fence + 1, owner = :owner WHERE id = :id AND {LIVE} RETURNING fence",
            {"id": storable(session_id), "owner": owner, "now": now},
        ).get
        if fence is None:
            raise missing(session_id)
    return Lease(session_id=session_id, fence=fence)


def head(connection: apsw.Connection, session_id: str, now: float) -> SessionRecord:
    """The record alone."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM sessions WHERE id = :id AND {LIVE}", {"id": storable(session_id), "now": now}
    ).get
    if row is None:
        raise missing(session_id)
    return record_from(row)


def journal(
    connection: apsw.Connection, entries: Sequence[JournalEntry], operations_since: float, now: float
) -> Sequence[Exception | None]:
    """Write all entries that can be written in one commit; an outcome for each."""
    with transaction(connection):
        return [_outcome(connection, entry, operations_since, now) for entry in entries]


def operation(
    connection: apsw.Connection, session_id: str, op_id: str, operations_since: float, now: float
) -> OperationRecord | None:
    """What an operation id stood for, if it was recorded after `operations_since`."""
    encode_text(op_id, "operation id")
    with reading(connection):
        _head(connection, session_id, now)
        return _operation(connection, session_id, op_id, operations_since)


def forget_operations(connection: apsw.Connection, operations_since: float) -> None:
    """Remove the operation ids recorded before `operations_since`."""
    with transaction(connection):
        connection.execute("DELETE FROM operations WHERE recorded_at <= ?", (operations_since,))


def saved(connection: apsw.Connection, session_id: str, now: float) -> Saved:
    """Record, pointer to the snapshot and tail, all of one moment."""
    with reading(connection):
        row = connection.execute(
            f"SELECT snapshot_name, snapshot_bytes, snapshot_position, {COLUMNS} FROM sessions "
            f"WHERE id = :id AND {LIVE}",
            {"id": storable(session_id), "now": now},
        ).get
        if row is None:
            raise missing(session_id)
        name, size, position, *columns = row
        record = record_from(columns)
        return Saved(record, name, size, position, _tail(connection, record, position))


def wants_snapshot(connection: apsw.Connection, lease: Lease, position: int, now: float) -> bool:
    """Whether a snapshot at `position` would be taken. Raises what `point_to_snapshot` would."""
    with reading(connection):
        return _is_newer(_leased(connection, lease, now), lease, position)


def point_to_snapshot(
    connection: apsw.Connection,
    lease: Lease,
    position: int,
    name: str,
    size: int,
    exists: Callable[[str], bool],
    now: float,
) -> str | None:
    """Make the file `name` the session's snapshot and trim the journal it covers.

    Returns the file that nobody needs any more: the one before, or `name` itself when a newer one is there
    already.
    """
    with transaction(connection):
        head = _leased(connection, lease, now)
        if not _is_newer(head, lease, position):
            return name
        if not exists(name):
            # A sweep took it for an orphan because its writer stood still for so long. The journal is whole.
            raise StoreUnavailable("Writing a snapshot took too long; it will be written again.")
        connection.execute(
            "UPDATE sessions SET snapshot_name = ?, snapshot_bytes = ?, snapshot_position = ? WHERE id = ?",
            (name, size, position, lease.session_id),
        )
        connection.execute(
            "DELETE FROM journal WHERE session_id = ? AND start < ? AND start + length(tokens) / ? <= ?",
            (lease.session_id, position, _TOKEN_BYTES, position),
        )
    return head.snapshot_name


def _outcome(connection: apsw.Connection, entry: JournalEntry, operations_since: float, now: float) -> Exception | None:
    try:
        _apply(connection, entry, operations_since, now)
    except (ServerError, AlreadyApplied) as refusal:
        return refusal
    return None


def _apply(connection: apsw.Connection, entry: JournalEntry, operations_since: float, now: float) -> None:
    # Whatever may refuse the entry comes before its first write, so that a refused entry writes nothing.
    session_id = entry.lease.session_id
    head = _leased(connection, entry.lease, now)
    if entry.operation is not None:
        _refuse_repeated(connection, session_id, entry.operation, operations_since)
    if entry.start != head.journaled:
        raise Internal(
            f"Session {session_id} has {head.journaled} tokens in its journal; an entry that begins at "
            f"{entry.start} would leave a gap or write some twice. Load the session again."
        )
    tokens = _pack(entry.tokens)
    open_text = encode_text(entry.open_text, "text")
    if tokens:
        connection.execute("INSERT INTO journal VALUES (?, ?, ?)", (session_id, entry.start, tokens))
    connection.execute(
        "UPDATE sessions SET journaled = ?, open_text = ?, open_tokens = ?, turn = ?, updated_at = ?, "
        "expires_at = ?, version = version + 1 WHERE id = ?",
        (
            head.journaled + len(entry.tokens),
            open_text,
            entry.open_tokens,
            entry.turn,
            now,
            expiry(head.ttl_seconds, now),
            session_id,
        ),
    )
    if entry.operation is not None:
        _record_operation(connection, session_id, entry.operation, now)


def _refuse_repeated(
    connection: apsw.Connection, session_id: str, new: OperationRecord, operations_since: float
) -> None:
    encode_text(new.op_id, "operation id")
    known = _operation(connection, session_id, new.op_id, operations_since)
    if known is None:
        return
    if known.request_digest != new.request_digest:
        raise OperationMismatch(
            f"Operation id {new.op_id!r} was used with another request; send a new id.", param="op_id"
        )
    raise AlreadyApplied(f"Operation {new.op_id!r} of session {session_id} is in the journal already")


def _record_operation(connection: apsw.Connection, session_id: str, operation: OperationRecord, now: float) -> None:
    # "Replace" because one that has expired may still be there until the next sweep.
    connection.execute(
        "INSERT OR REPLACE INTO operations VALUES (?, ?, ?, ?, ?, ?)",
        (session_id, operation.op_id, operation.request_digest, operation.tokens, operation.position, now),
    )


def _operation(
    connection: apsw.Connection, session_id: str, op_id: str, operations_since: float
) -> OperationRecord | None:
    row = connection.execute(
        "SELECT op_id, request_digest, tokens, position FROM operations "
        "WHERE session_id = ? AND op_id = ? AND recorded_at > ?",
        (session_id, op_id, operations_since),
    ).get
    return None if row is None else OperationRecord(*row)


def _head(connection: apsw.Connection, session_id: str, now: float) -> _Head:
    row = connection.execute(
        f"SELECT {', '.join(_Head._fields)} FROM sessions WHERE id = :id AND {LIVE}",
        {"id": storable(session_id), "now": now},
    ).get
    if row is None:
        raise missing(session_id)
    return _Head(*row)


def _leased(connection: apsw.Connection, lease: Lease, now: float) -> _Head:
    head = _head(connection, lease.session_id, now)
    if lease.fence != head.fence:
        raise StaleLease(
            f"Another worker has taken over session {lease.session_id} "
            f"(fence {head.fence}, not {lease.fence}); try again."
        )
    return head


def _is_newer(head: _Head, lease: Lease, position: int) -> bool:
    if not 0 <= position <= head.journaled:
        raise Internal(
            f"A snapshot of session {lease.session_id} at {position} cannot cover a journal of {head.journaled} tokens"
        )
    return head.snapshot_name is None or position >= head.snapshot_position


def _tail(connection: apsw.Connection, record: SessionRecord, position: int) -> Sequence[int]:
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT start, tokens FROM journal WHERE session_id = ? AND start + length(tokens) / ? > ? ORDER BY start",
        (record.id, _TOKEN_BYTES, position),
    ).fetchall()
    end = rows[0][0] if rows else position
    whole = end <= position
    for start, tokens in rows:
        whole = whole and start == end
        end = start + len(tokens) // _TOKEN_BYTES
    if not whole or end != record.journaled:
        raise StateRefused(
            f"The journal of session {record.id} has a gap. "
            "Restore the data folder from a backup, or delete the session."
        )
    packed = b"".join(tokens for _, tokens in rows)
    behind = packed[len(packed) - (end - position) * _TOKEN_BYTES :]
    return struct.unpack(f"<{len(behind) // _TOKEN_BYTES}I", behind)


def _pack(tokens: Sequence[int]) -> bytes:
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error as error:
        raise Internal("Token ids must be whole numbers from 0 to 4,294,967,295") from error
