"""What workers append in the embedded store's database: journal entries and the operations they answer.

One function, one transaction; every function blocks. `now` is seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.errors import Internal, OperationMismatch, ServerError
from server.store import embedded_generations
from server.store.base import AlreadyApplied, JournalEntry, OperationRecord, other_history
from server.store.embedded_database import Database
from server.store.embedded_leases import Writable, leased
from server.store.embedded_sessions import check_match, encode_text, expiry, head, new_tag
from server.store.tokens import pack_tokens


def journal(
    database: Database, entries: Sequence[JournalEntry], recorded_since: float, now: float
) -> Sequence[Exception | str]:
    """Write all entries that can be written in one commit; an outcome for each."""
    with database.writing():
        return [_outcome(database, entry, recorded_since, now) for entry in entries]


def operation(
    database: Database, session_id: str, op_id: str, recorded_since: float, now: float
) -> OperationRecord | None:
    """What an operation id stood for, if it was recorded after `recorded_since`."""
    encode_text(op_id, "operation id")
    with database.reading():
        head(database, session_id, now)
        return _operation(database, session_id, op_id, recorded_since)


def forget(database: Database, recorded_since: float) -> None:
    """Remove operations, generations and claims recorded before `recorded_since`."""
    with database.writing():
        for table in ("operations", "generations", "claims"):
            database.run(f"DELETE FROM {table} WHERE recorded_at <= :since", {"since": recorded_since})


def insert_tokens(database: Database, tenant: str, session_id: str, start: int, tokens: Sequence[int]) -> None:
    """Add a row to the journal, unless there are no tokens. Raises `Internal` for bad token ids."""
    packed = pack_tokens(tokens)
    if packed:
        sealed = database.sealer.seal(packed, (tenant, session_id, "journal", start))
        database.run(
            "INSERT INTO journal VALUES (:id, :start, :count, :tokens)",
            {"id": session_id, "start": start, "count": len(tokens), "tokens": sealed},
        )


def _outcome(database: Database, entry: JournalEntry, recorded_since: float, now: float) -> Exception | str:
    try:
        return _apply(database, entry, recorded_since, now)
    except (ServerError, AlreadyApplied) as refusal:
        return refusal


def _apply(database: Database, entry: JournalEntry, recorded_since: float, now: float) -> str:
    # Whatever may refuse the entry comes before its first write, so that a refused entry writes nothing.
    session = leased(database, entry.lease, now)
    if entry.operation is not None:
        _refuse_repeated(database, session.id, entry.operation, recorded_since)
    check_match(session.id, session.etag, entry.if_match)
    _check_shape(entry, session)
    embedded_generations.check(database, entry)
    etag = session.etag if entry.silent else _extend(database, entry, session, now)
    embedded_generations.record(database, entry, session.tenant, now)
    if entry.operation is not None:
        _record_operation(database, session.id, replace(entry.operation, etag=etag), now)
    return etag


def _check_shape(entry: JournalEntry, session: Writable) -> None:
    if entry.start != session.journaled:
        raise other_history(session.id, session.journaled, entry.start)
    if entry.silent and entry.tokens:
        raise Internal(f"A silent entry of session {session.id} brings {len(entry.tokens)} tokens; it must bring none")
    pack_tokens(entry.tokens)
    encode_text(entry.open_text, "text")


def _extend(database: Database, entry: JournalEntry, session: Writable, now: float) -> str:
    insert_tokens(database, session.tenant, session.id, entry.start, entry.tokens)
    journaled, tag = session.journaled + len(entry.tokens), new_tag()
    open_text = database.sealer.seal(
        encode_text(entry.open_text, "text"), (session.tenant, session.id, "open_text", journaled)
    )
    database.run(
        "UPDATE sessions SET journaled = :journaled, open_text = :open_text, open_tokens = :open_tokens, turn = :turn, "
        "updated_at = :now, expires_at = :expires_at, version = :version, tag = :tag WHERE id = :id",
        {
            "id": session.id,
            "journaled": journaled,
            "open_text": open_text,
            "open_tokens": entry.open_tokens,
            "turn": entry.turn,
            "now": now,
            "expires_at": expiry(session.ttl_seconds, now),
            "version": session.version + 1,
            "tag": tag,
        },
    )
    return session._replace(version=session.version + 1, tag=tag).etag


def _refuse_repeated(database: Database, session_id: str, new: OperationRecord, recorded_since: float) -> None:
    encode_text(new.op_id, "operation id")
    known = _operation(database, session_id, new.op_id, recorded_since)
    if known is None:
        return
    if known.request_digest != new.request_digest:
        raise mismatch(new.op_id)
    raise AlreadyApplied(f"Operation {new.op_id!r} of session {session_id} is in the journal already")


def mismatch(op_id: str) -> OperationMismatch:
    """The error for an operation id that stood for another request."""
    return OperationMismatch(f"Operation id {op_id!r} was used with another request; send a new id.", param="op_id")


def _record_operation(database: Database, session_id: str, operation: OperationRecord, now: float) -> None:
    # "Replace" because one that has expired may still be there until the next sweep.
    database.run(
        "INSERT OR REPLACE INTO operations VALUES "
        "(:session_id, :op_id, :request_digest, :tokens, :position, :generation_id, :etag, :now)",
        {**vars(operation), "session_id": session_id, "now": now},
    )


def _operation(database: Database, session_id: str, op_id: str, recorded_since: float) -> OperationRecord | None:
    row = database.row(
        "SELECT op_id, request_digest, tokens, position, generation_id, etag FROM operations "
        "WHERE session_id = :session_id AND op_id = :op_id AND recorded_at > :since",
        {"session_id": session_id, "op_id": op_id, "since": recorded_since},
    )
    return None if row is None else OperationRecord(*row)
