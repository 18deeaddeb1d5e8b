"""Which files are whose snapshots, in the embedded store's database, and what the journal holds behind them.

One function, one transaction, unless it says otherwise; every function blocks. A file may be of several sessions: forks share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.errors import StateRefused, StoreUnavailable
from server.store.base import Lease, SessionRecord, other_history
from server.store.embedded_database import Database
from server.store.embedded_leases import Writable, leased
from server.store.embedded_sessions import head, unreferenced
from server.store.sealing import Sealer
from server.store.tokens import unpack_tokens


class Pointer(NamedTuple):
    """One kept generation of a session's snapshot: the file that has it, and the session that wrote that file."""

    position: int
    file: str
    size: int
    writer: str
    sealed: int
    """0 for a file of schema version 1, which holds the bare snapshot."""

    def open(self, sealer: Sealer, tenant: str, content: bytes) -> bytes:
        """The snapshot in a file's content. Raises `StateRefused` when it is damaged."""
        return sealer.open(content, about_snapshot(tenant, self.writer, self.position)) if self.sealed else content


class JournalRow(NamedTuple):
    """Consecutive tokens as they lie in the journal."""

    start: int
    length: int
    sealed: bytes


@dataclass(frozen=True)
class Saved:
    """A session as the database knows it at one moment."""

    record: SessionRecord
    pointers: Sequence[Pointer]
    """The newest first."""
    rows: Sequence[JournalRow]

    def tail(self, sealer: Sealer, position: int) -> Sequence[int]:
        """Tokens from `position` on. Raises `StateRefused` when some are missing or damaged."""
        tokens: list[int] = []
        reached = position
        for start, length, sealed in self.rows:
            if start + length <= position:
                continue
            if start > reached:
                break
            about = (self.record.tenant, self.record.id, "journal", start)
            tokens += unpack_tokens(sealer.open(sealed, about))[reached - start :]
            reached = start + length
        if position + len(tokens) != self.record.journaled:
            raise StateRefused(
                f"The journal of session {self.record.id} has a gap. "
                "Restore the data folder from a backup, or delete the session."
            )
        return tuple(tokens)


def about_snapshot(tenant: str, writer: str, position: int) -> tuple[str | int, ...]:
    """Under which name a snapshot is sealed."""
    return (tenant, writer, "snapshot", position)


def saved(database: Database, session_id: str, now: float) -> Saved:
    """Record, pointers and journal, all of one moment."""
    with database.reading():
        record = head(database, session_id, now)
        return Saved(record, pointers(database, session_id), journal_rows(database, session_id))


def pointers(database: Database, session_id: str) -> Sequence[Pointer]:
    """The kept generations, the newest first; in the caller's transaction."""
    rows = database.rows(
        f"SELECT {', '.join(Pointer._fields)} FROM snapshots WHERE session_id = :id ORDER BY number DESC",
        {"id": session_id},
    )
    return [Pointer(*row) for row in rows]


def journal_rows(database: Database, session_id: str) -> Sequence[JournalRow]:
    """The journal as far as it is kept; in the caller's transaction."""
    rows = database.rows(
        "SELECT start, count, tokens FROM journal WHERE session_id = :id ORDER BY start", {"id": session_id}
    )
    return [JournalRow(*row) for row in rows]


def wants(database: Database, lease: Lease, position: int, now: float) -> str | None:
    """The tenant, under whose name a snapshot at `position` is to be sealed, or None when there is a newer one.

    Raises what `point` would.
    """
    with database.reading():
        session = leased(database, lease, now)
        return session.tenant if _is_newer(database, session, position) else None


def point(
    database: Database, lease: Lease, new: Pointer, generations: int, exists: Callable[[str], bool], now: float
) -> Sequence[str]:
    """Make `new` the session's newest generation, keep `generations` of them, and trim the journal they cover.

    Returns the files that nobody needs any more: those of older generations, or that of `new` itself when there is a newer one.
    """
    with database.writing():
        session = leased(database, lease, now)
        if not _is_newer(database, session, new.position):
            return [new.file]
        if not exists(new.file):
            # A sweep took it for an orphan because its writer stood still for so long. The journal is whole.
            raise StoreUnavailable("Writing a snapshot took too long; it will be written again.")
        insert_pointer(database, session.id, new)
        return _forget_older(database, session.id, generations)


def insert_pointer(database: Database, session_id: str, new: Pointer) -> None:
    """Add the newest generation; in the caller's transaction."""
    database.run(
        "INSERT INTO snapshots SELECT :id, 1 + coalesce(max(number), 0), :position, :file, :size, :writer, :sealed "
        "FROM snapshots WHERE session_id = :id",
        {"id": session_id, **new._asdict()},
    )


def remove_unreferenced(database: Database, names: Sequence[str], remove: Callable[[str], None]) -> None:
    """Call `remove` with each of the snapshot files that no session points to.

    The write lock is held meanwhile: nobody can begin to point to a file between the question and its
    removal.
    """
    with database.writing():
        for name in unreferenced(database, set(names)):
            remove(name)


def _is_newer(database: Database, session: Writable, position: int) -> bool:
    if not 0 <= position <= session.journaled:
        raise other_history(session.id, session.journaled, position)
    known = pointers(database, session.id)
    return not known or position >= known[0].position


def _forget_older(database: Database, session_id: str, generations: int) -> Sequence[str]:
    kept = pointers(database, session_id)
    # As long as fewer are kept, the beginning of the session, for which no file is needed, is the generation before.
    if len(kept) < generations:
        return []
    oldest = kept[generations - 1].position
    database.run(
        "DELETE FROM snapshots WHERE session_id = :id AND number NOT IN "
        "(SELECT number FROM snapshots WHERE session_id = :id ORDER BY number DESC LIMIT :kept)",
        {"id": session_id, "kept": generations},
    )
    database.run(
        "DELETE FROM journal WHERE session_id = :id AND start + count <= :oldest", {"id": session_id, "oldest": oldest}
    )
    return unreferenced(database, {pointer.file for pointer in kept[generations:]})
