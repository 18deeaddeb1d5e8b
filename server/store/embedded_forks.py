"""Sessions that begin with what others have read, in the embedded store's database. One function, one transaction; all block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from server.errors import Internal, StoreUnavailable
from server.store.base import SessionRecord
from server.store.embedded_database import Database
from server.store.embedded_journal import insert_tokens
from server.store.embedded_sessions import check_match, get, insert, taken
from server.store.embedded_snapshots import Pointer, insert_pointer, journal_rows, pointers


def fork(
    database: Database, tenant: str, session_id: str, child: SessionRecord, if_match: frozenset[str] | None, now: float
) -> SessionRecord:
    """Add `child`, unless it is there: it points to the parent's files, and has the parent's journal, under its own name."""
    if child.tenant != tenant:
        raise Internal(f"A fork of session {session_id} must be its tenant's")
    with database.writing():
        # First of all: a repeat gets the same answer, whatever has become of the parent.
        if (found := taken(database, child, now)) is not None:
            return found
        parent = get(database, tenant, session_id, now)
        check_match(session_id, parent.etag, if_match)
        record = insert(database, _continued(parent, child), now)
        for pointer in reversed(pointers(database, session_id)):
            insert_pointer(database, child.id, pointer)
        _copy_journal(database, parent, child.id)
        return record


def adopt(
    database: Database,
    record: SessionRecord,
    pointer: Pointer | None,
    tail: Sequence[int],
    exists: Callable[[str], bool],
    now: float,
) -> tuple[SessionRecord, bool]:
    """Add `record` with its snapshot and journal, unless it is there; and whether it was added."""
    with database.writing():
        if (found := taken(database, record, now)) is not None:
            return found, False
        if pointer is not None and not exists(pointer.file):
            raise StoreUnavailable("Writing a snapshot took too long; try again.")
        added = insert(database, record, now)
        if pointer is not None:
            insert_pointer(database, record.id, pointer)
        insert_tokens(database, record.tenant, record.id, record.journaled - len(tail), tail)
        return added, True


def existing(database: Database, record: SessionRecord, now: float) -> SessionRecord | None:
    """The session that has the id of `record` already."""
    with database.writing():
        return taken(database, record, now)


def _continued(parent: SessionRecord, child: SessionRecord) -> SessionRecord:
    return replace(
        child,
        model=parent.model,
        memory=parent.memory,
        journaled=parent.journaled,
        open_text=parent.open_text,
        open_tokens=parent.open_tokens,
        turn=parent.turn,
    )


def _copy_journal(database: Database, parent: SessionRecord, child_id: str) -> None:
    sealer = database.sealer
    for start, count, sealed in journal_rows(database, parent.id):
        tokens = sealer.open(sealed, (parent.tenant, parent.id, "journal", start))
        database.run(
            "INSERT INTO journal VALUES (:id, :start, :count, :tokens)",
            {
                "id": child_id,
                "start": start,
                "count": count,
                "tokens": sealer.seal(tokens, (parent.tenant, child_id, "journal", start)),
            },
        )
