"""The embedded store's work with snapshot files: bytes first, then the transaction that points to them; never the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from server.errors import Internal, NotFound, StaleLease, StateRefused
from server.failpoints import failpoint
from server.store import embedded_forks, embedded_sessions, embedded_snapshots
from server.store.base import Lease, SessionRecord, StoredSession
from server.store.blobs import SnapshotFolder
from server.store.embedded_database import DatabaseThread
from server.store.embedded_snapshots import Pointer, Saved, about_snapshot
from server.store.sealing import Sealer

_ORPHAN_SECONDS = 60.0
"""A file nobody points to may be one whose writer is about to; after this long its writer must have died."""


class SnapshotFiles:
    """What takes a file and a transaction. Every method blocks, and is called on threads other than the database's own."""

    def __init__(
        self, folder: Path, database: DatabaseThread, sealer: Sealer, clock: Callable[[], float], generations: int
    ) -> None:
        self._files = SnapshotFolder(folder)
        self._database, self._sealer, self._clock, self._generations = database, sealer, clock, generations

    def create(self) -> None:
        """Make the folder if it is missing."""
        self._files.create()

    def delete(self, tenant: str, session_id: str, if_match: frozenset[str] | None) -> None:
        """Remove a session, and the files that are of no other."""
        deleted = self._database.wait(embedded_sessions.delete, tenant, session_id, if_match, self._clock())
        self._remove(deleted.files)

    def load(self, session_id: str) -> StoredSession:
        """The session out of its newest whole generation."""
        missing: set[str] = set()
        while True:
            saved = self._database.wait(embedded_snapshots.saved, session_id, self._clock())
            try:
                return self._restored(saved, missing)
            except FileNotFoundError as error:
                # A writer may have replaced it since we read its name; if not, the next look finds the name again.
                missing.add(Path(error.filename).name)

    def save(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Write a snapshot and point to it, unless there is a newer one."""
        # Asked before the expensive part, which is the file, and again in the transaction that counts.
        tenant = self._database.wait(embedded_snapshots.wants, lease, position, self._clock())
        if tenant is None:
            return
        pointer = self._write(tenant, lease.session_id, position, snapshot)
        failpoint("snapshot.written")
        try:
            unneeded = self._database.wait(
                embedded_snapshots.point, lease, pointer, self._generations, self._files.has, self._clock()
            )
        except (NotFound, StaleLease):
            self._files.remove(pointer.file)
            raise
        # After a failed commit all files stay: only the next sweep can say which ones the rows name.
        failpoint("snapshot.pointed")
        self._remove(unneeded)

    def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        """Write the snapshot and add the session, unless it is there."""
        found = self._database.wait(embedded_forks.existing, record, self._clock())
        if found is not None:
            return found
        position = record.journaled - len(tail)
        if position < 0 or (snapshot is None and position):
            raise Internal(f"Session {record.id} of {record.journaled} tokens cannot begin with a tail of {len(tail)}")
        pointer = None if snapshot is None else self._write(record.tenant, record.id, position, snapshot)
        # After a failed commit the file stays: only the next sweep can say whether a row names it.
        adopted, added = self._database.wait(
            embedded_forks.adopt, record, pointer, tail, self._files.has, self._clock()
        )
        if pointer is not None and not added:
            self._files.remove(pointer.file)
        return adopted

    def sweep_expired(self) -> int:
        """Remove sessions that have expired; how many."""
        gone = 0
        while True:
            deleted = self._database.wait(embedded_sessions.delete_expired, self._clock())
            if not deleted.sessions:
                return gone
            self._remove(deleted.files)
            gone += deleted.sessions

    def sweep_orphans(self) -> None:
        """Remove old files that nobody points to."""
        if old := self._files.older_than(_ORPHAN_SECONDS):
            self._database.wait(embedded_snapshots.remove_unreferenced, old, self._files.remove)

    def _write(self, tenant: str, session_id: str, position: int, snapshot: bytes) -> Pointer:
        sealed = self._sealer.seal(snapshot, about_snapshot(tenant, session_id, position))
        name = self._files.write(session_id, sealed)
        return Pointer(position, name, len(sealed), session_id, sealed=1)

    def _restored(self, saved: Saved, missing: set[str]) -> StoredSession:
        record = saved.record
        for skipped, pointer in enumerate(saved.pointers):
            if pointer.file in missing:
                continue
            try:
                content = self._files.read(pointer.file, pointer.size)
                snapshot = pointer.open(self._sealer, record.tenant, content)
            except StateRefused:
                continue
            tail = saved.tail(self._sealer, pointer.position)
            return StoredSession(record, snapshot, pointer.position, tail, skipped)
        if saved.pointers and record.journaled and not (saved.rows and saved.rows[0].start == 0):
            raise StateRefused(
                f"No snapshot of session {record.id} is whole, and its journal no longer goes back to the beginning. "
                "Restore the data folder from a backup, or delete the session."
            )
        return StoredSession(record, None, 0, saved.tail(self._sealer, 0), len(saved.pointers))

    def _remove(self, files: Sequence[str]) -> None:
        for file in files:
            self._files.remove(file)
