"""The store for one machine: records and journal in SQLite, snapshots as files beside it.

`folder/palimpsest.db` in WAL mode with synchronous=FULL, `folder/snapshots/`. Several processes may open one
folder: whatever reads and then writes is one IMMEDIATE transaction, and a file is only ever removed when no
row points to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeVar

import apsw

from server.errors import NotFound, StaleLease, StateRefused, StoreUnavailable
from server.store import embedded_journal, embedded_sessions
from server.store.base import JournalEntry, Lease, OperationRecord, Page, SessionRecord, StoredSession
from server.store.blobs import SnapshotFolder, make_private_folder
from server.store.failures import translated
from server.store.schema import connect
from server.store.threads import WorkThreads

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
Work = Callable[Concatenate[apsw.Connection, Arguments], Result]

_ORPHAN_SECONDS = 60.0
"""A file nobody points to may be one whose writer is about to; after this long its writer must have died."""


class EmbeddedStore:
    """`Store` in one folder of a local disk, made with mode 0700 if it is missing.

    `clock` gives seconds since the epoch, the same for every process. An operation id is remembered for
    `operation_ttl_seconds`. Use from one event loop; call `open` first and `close` last.
    """

    def __init__(
        self, folder: Path, *, clock: Callable[[], float] = time.time, operation_ttl_seconds: float = 86_400
    ) -> None:
        self._folder = folder
        self._files = SnapshotFolder(folder / "snapshots")
        self._clock = clock
        self._operation_ttl_seconds = operation_ttl_seconds
        self._connection: apsw.Connection | None = None
        # A commit must not wait for the fsync of a large file, nor a load for a save.
        self._database_thread = WorkThreads("store-database")
        self._file_threads = WorkThreads("store-files", count=2)

    async def open(self) -> None:
        """Create what is missing. Raises `StoreUnavailable` for a folder or database that cannot be used."""
        await self._database_thread.run(self._open)

    async def close(self) -> None:
        """Finish what was begun and let go. A closed store stays closed."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._close))

    async def ping(self) -> None:
        """Commit a heartbeat: a full or read-only disk shows itself only to a real write."""
        await self._transact(embedded_sessions.beat)

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Add a session. Raises `Internal` when the id is taken or the record claims journaled tokens."""
        return await self._transact(embedded_sessions.create, record, self._clock())

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record."""
        return await self._transact(embedded_sessions.get, tenant, session_id, self._clock())

    async def list(self, tenant: str, *, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """Raises `InvalidRequest` (param `after`) when `after` is not a session of the tenant."""
        return await self._transact(embedded_sessions.page, tenant, limit, after, order, self._clock())

    async def update(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | Literal["keep"] | None = "keep",
        if_version: int | None = None,
    ) -> SessionRecord:
        """Change metadata or lifetime. Raises `PreconditionFailed` when `if_version` is not the newest."""
        return await self._transact(
            embedded_sessions.update, tenant, session_id, metadata, ttl_seconds, if_version, self._clock()
        )

    async def delete(self, tenant: str, session_id: str) -> None:
        """Remove the session, its journal, its operations and its files."""
        await self._with_files(lambda: self._delete(tenant, session_id))

    async def acquire(self, session_id: str, owner: str) -> Lease:
        """Become the session's only writer; every older lease is void from here on."""
        return await self._transact(embedded_journal.acquire, session_id, owner, self._clock())

    async def head(self, session_id: str) -> SessionRecord:
        """The newest record, whoever's it is."""
        return await self._transact(embedded_journal.head, session_id, self._clock())

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | None]:
        """Commit all entries at once. Raises `StoreUnavailable` when none was written; an entry alone is
        refused with `NotFound`, `StaleLease`, `AlreadyApplied`, `OperationMismatch`, `InvalidRequest`, or
        `Internal` for a wrong `start` or token id."""
        if not entries:
            return []
        now = self._clock()
        return await self._transact(embedded_journal.journal, tuple(entries), self._operations_since(now), now)

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """What `op_id` stood for, if it was seen and has not expired."""
        now = self._clock()
        return await self._transact(embedded_journal.operation, session_id, op_id, self._operations_since(now), now)

    async def load(self, session_id: str) -> StoredSession:
        """Everything needed to go on. Raises `StateRefused` when the snapshot's file is missing or cut
        short."""
        return await self._with_files(lambda: self._load(session_id))

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Replace the snapshot by one that covers `position` tokens. Raises `Internal` for a `position`
        beyond the journal; one behind the current snapshot is ignored."""
        await self._with_files(lambda: self._save_snapshot(lease, position, snapshot))

    async def sweep(self) -> int:
        """Delete expired sessions and operation ids, and files nobody points to; how many sessions went."""
        return await self._with_files(self._sweep)

    async def _transact(
        self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        return await self._database_thread.run(lambda: self._connected(work, *args, **kwargs))

    def _transact_from_thread(
        self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        return self._database_thread.wait(lambda: self._connected(work, *args, **kwargs))

    async def _with_files(self, work: Callable[[], Result]) -> Result:
        return await self._file_threads.run(lambda: _translating(work))

    def _connected(self, work: Work[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self._connection is None:
            raise StoreUnavailable("The store is not open yet. Try again when the server is ready.")
        with translated():
            return work(self._connection, *args, **kwargs)

    def _operations_since(self, now: float) -> float:
        return now - self._operation_ttl_seconds

    def _open(self) -> None:
        with translated():
            make_private_folder(self._folder)
            self._files.create()
            if self._connection is None:
                self._connection = connect(self._folder / "palimpsest.db")

    def _close(self) -> None:
        self._file_threads.shutdown()  # first: work with files ends in the database
        self._database_thread.shutdown()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _delete(self, tenant: str, session_id: str) -> None:
        self._transact_from_thread(embedded_sessions.delete, tenant, session_id, self._clock())
        self._files.remove_all(session_id)

    def _load(self, session_id: str) -> StoredSession:
        missed: str | None = None
        while True:
            saved = self._transact_from_thread(embedded_journal.saved, session_id, self._clock())
            if saved.snapshot_name is None:
                return StoredSession(saved.record, None, 0, saved.tail)
            try:
                content = self._files.read(saved.snapshot_name, saved.snapshot_bytes)
            except FileNotFoundError as error:
                # A writer may have replaced it since we read its name; then there is a new name to be read.
                if saved.snapshot_name == missed:
                    raise StateRefused(
                        f"The snapshot of session {session_id} is missing from the data folder. "
                        "Restore it from a backup, or delete the session."
                    ) from error
                missed = saved.snapshot_name
            else:
                return StoredSession(saved.record, content, saved.snapshot_position, saved.tail)

    def _save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        # Asked before the expensive part, which is the file, and again in the transaction that counts.
        if not self._transact_from_thread(embedded_journal.wants_snapshot, lease, position, self._clock()):
            return
        name = self._files.write(lease.session_id, snapshot)
        try:
            unneeded = self._transact_from_thread(
                embedded_journal.point_to_snapshot,
                lease,
                position,
                name,
                len(snapshot),
                self._files.has,
                self._clock(),
            )
        except (NotFound, StaleLease):
            self._files.remove(name)
            raise
        # After a failed commit both files stay: only the next sweep can say which one the row names.
        if unneeded is not None:
            self._files.remove(unneeded)

    def _sweep(self) -> int:
        now = self._clock()
        gone = 0
        while expired := self._transact_from_thread(embedded_sessions.delete_expired, now):
            for session_id in expired:
                self._files.remove_all(session_id)
            gone += len(expired)
        self._transact_from_thread(embedded_journal.forget_operations, self._operations_since(now))
        if old := self._files.older_than(_ORPHAN_SECONDS):
            self._transact_from_thread(embedded_sessions.remove_unreferenced, old, self._files.remove)
        return gone


def _translating(work: Callable[[], Result]) -> Result:
    with translated():
        return work()
