"""The store for one machine: records and journal in SQLite, snapshots as files beside it.

`folder/palimpsest.db` in WAL mode with synchronous=FULL, `folder/snapshots/`, `folder/owners/`. Several processes may open one
folder: whatever reads and then writes is one IMMEDIATE transaction, and a file is only ever removed when no row points to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from server.failpoints import failpoint
from server.store import (
    embedded_claims,
    embedded_forks,
    embedded_generations,
    embedded_journal,
    embedded_leases,
    embedded_sessions,
)
from server.store.base import (
    Claim,
    Durability,
    GenerationRecord,
    JournalEntry,
    Lease,
    OperationRecord,
    Page,
    SessionRecord,
    StoredSession,
)
from server.store.blobs import make_private_folder
from server.store.clock import SteadyClock
from server.store.embedded_database import Database, DatabaseThread
from server.store.embedded_files import SnapshotFiles
from server.store.embedded_owners import OwnerLocks
from server.store.failures import translated
from server.store.sealing import PlainSealer, Sealer
from server.store.threads import WorkThreads

Result = TypeVar("Result")

_POLL_SECONDS = 0.05
"""How often an owner looks whether its sessions are wanted."""


class EmbeddedStore:
    """`Store` in one folder of a local disk, made with mode 0700 if it is missing.

    `sealer` wraps whatever is content. `clock` gives seconds since the epoch, the same for every process; without one it is a
    `SteadyClock`. Operations, generations and claims are remembered for `operation_ttl_seconds` after their last change,
    `generations` snapshots of each session are kept. Use from one event loop; call `open` first and `close` last.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sealer: Sealer | None = None,
        clock: Callable[[], float] | None = None,
        operation_ttl_seconds: float = 86_400,
        generations: int = 2,
    ) -> None:
        sealer = sealer or PlainSealer()
        self._steady = SteadyClock()
        self._clock = clock or self._steady
        self._folder, self._operation_ttl_seconds = folder, operation_ttl_seconds
        self._database = DatabaseThread(folder / "palimpsest.db", sealer)
        self._snapshots = SnapshotFiles(folder / "snapshots", self._database, sealer, self._clock, generations)
        self._owners = OwnerLocks(folder / "owners")
        # A commit must not wait for the fsync of a large file, nor a load for a save.
        self._file_threads = WorkThreads("store-files", count=2)

    @property
    def durability(self) -> Durability:
        """Every commit and every file is synced to the disk."""
        return "fsync"

    async def open(self) -> None:
        """Create what is missing. Raises `StoreUnavailable` for a folder or database that cannot be used."""
        await self._database.open(self._prepare)
        await self._database.run(self._steady.agree)

    async def close(self) -> None:
        """Finish what was begun and let go, of leases too. A closed store stays closed."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._close))

    async def ping(self) -> None:
        """Commit a heartbeat: a full or read-only disk shows itself only to a real write."""
        await self._database.run(embedded_sessions.beat)

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Add a session. Raises `Internal` when the id is another tenant's or the record claims journaled tokens."""
        return await self._database.run(embedded_sessions.create, record, self._clock())

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record."""
        return await self._database.run(embedded_sessions.get, tenant, session_id, self._clock())

    async def list(self, tenant: str, *, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """Raises `InvalidRequest` (param `after`) when `after` is not a session of the tenant."""
        return await self._database.run(embedded_sessions.page, tenant, limit, after, order, self._clock())

    async def update(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | Literal["keep"] | None = "keep",
        if_match: frozenset[str] | None = None,
    ) -> SessionRecord:
        """Change metadata or lifetime. Raises `PreconditionFailed` when the newest ETag is not in `if_match`."""
        return await self._database.run(
            embedded_sessions.update, tenant, session_id, metadata, ttl_seconds, if_match, self._clock()
        )

    async def delete(self, tenant: str, session_id: str, *, if_match: frozenset[str] | None = None) -> None:
        """Remove the session, its journal, operations and generations, and the files that no fork shares."""
        await self._with_files(lambda: self._snapshots.delete(tenant, session_id, if_match))

    async def fork(
        self, tenant: str, session_id: str, child: SessionRecord, *, if_match: frozenset[str] | None = None
    ) -> SessionRecord:
        """Add `child`, which points to the parent's files. Raises `Internal` when its id is another tenant's."""
        failpoint("fork.before")
        record = await self._database.run(embedded_forks.fork, tenant, session_id, child, if_match, self._clock())
        # Parent and child learn of each other in one transaction, so that this comes behind both.
        failpoint("fork.pinned")
        return record

    async def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        """Add a session with a past. Raises `Internal` for a past that does not add up."""
        return await self._with_files(lambda: self._snapshots.adopt(record, snapshot, tuple(tail)))

    async def claim(self, tenant: str, op_id: str, request_digest: str, session_id: str) -> Claim:
        """Tie an operation id to a session's; the first call counts."""
        now = self._clock()
        return await self._database.run(
            embedded_claims.claim, tenant, op_id, request_digest, session_id, self._since(now), now
        )

    async def settle(self, tenant: str, op_id: str, answer: bytes) -> None:
        """Keep the first answer. A claim that is not there, or has expired, is ignored."""
        await self._database.run(embedded_claims.settle, tenant, op_id, answer)

    async def acquire(self, session_id: str, owner: str, seconds: float) -> Lease:
        """Become the session's only writer. A holder whose process has ended is superseded at once."""
        failpoint("acquire.before")
        lease = await self._database.run(
            embedded_leases.acquire, session_id, owner, seconds, self._owners, self._clock()
        )
        failpoint("acquire.after")
        return lease

    async def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[Exception | None]:
        """Hold on, in one commit."""
        failpoint("renew.before")
        if not leases:
            return []
        return await self._database.run(embedded_leases.renew, tuple(leases), seconds, self._clock())

    async def release(self, lease: Lease) -> None:
        """Let others acquire at once."""
        failpoint("release.before")
        await self._database.run(embedded_leases.release, lease)

    async def decline(self, lease: Lease, seconds: float) -> None:
        """Let others know that the session cannot be had yet."""
        await self._database.run(embedded_leases.decline, lease, seconds, self._clock())

    async def wanted(self, owner: str, seconds: float) -> Sequence[str]:
        """Sessions of this owner that others would acquire, each told once until somebody asks again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            found = await self._database.run(embedded_leases.wanted, owner)
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            await asyncio.sleep(min(_POLL_SECONDS, left))

    async def head(self, session_id: str) -> SessionRecord:
        """The newest record, whoever's it is."""
        return await self._database.run(embedded_sessions.head, session_id, self._clock())

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        """Commit all entries at once. Raises `StoreUnavailable` when none was written; an entry alone is
        refused with `NotFound`, `StaleLease`, `AlreadyApplied`, `OperationMismatch`, `PreconditionFailed`, `InvalidRequest`, or
        `Internal` for a wrong `start`, token id or generation."""
        if not entries:
            return []
        failpoint("journal.before")
        now = self._clock()
        outcomes = await self._database.run(embedded_journal.journal, tuple(entries), self._since(now), now)
        failpoint("journal.after")
        return outcomes

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """What `op_id` stood for, if it was seen and has not expired."""
        now = self._clock()
        return await self._database.run(embedded_journal.operation, session_id, op_id, self._since(now), now)

    async def generation(self, generation_id: str) -> GenerationRecord | None:
        """A recorded generation, if it has not expired and its session is there."""
        now = self._clock()
        return await self._database.run(embedded_generations.generation, generation_id, self._since(now), now)

    async def load(self, session_id: str) -> StoredSession:
        """Everything needed to go on. Raises `StateRefused` when no snapshot is whole and the journal has been trimmed."""
        failpoint("load.before")
        return await self._with_files(lambda: self._snapshots.load(session_id))

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Add a generation that covers `position` tokens. Raises `Internal` for a `position`
        beyond the journal; one behind the current snapshot is ignored."""
        failpoint("snapshot.before")
        await self._with_files(lambda: self._snapshots.save(lease, position, snapshot))

    async def sweep(self) -> int:
        """Delete expired sessions, operations, generations and claims, and files nobody points to; how many sessions went."""
        return await self._with_files(self._sweep)

    async def _with_files(self, work: Callable[[], Result]) -> Result:
        return await self._file_threads.run(lambda: _translating(work))

    def _since(self, now: float) -> float:
        return now - self._operation_ttl_seconds

    def _prepare(self) -> None:
        make_private_folder(self._folder)
        self._snapshots.create()
        self._owners.create()

    def _close(self) -> None:
        self._file_threads.shutdown()  # first: work with files ends in the database
        self._database.close()
        self._owners.close()

    def _sweep(self) -> int:
        gone = self._snapshots.sweep_expired()
        self._database.wait(embedded_journal.forget, self._since(self._clock()))
        self._snapshots.sweep_orphans()
        self._database.wait(_sweep_owners, self._owners)
        return gone


def _sweep_owners(database: Database, owners: OwnerLocks) -> None:
    with database.writing():
        owners.sweep()


def _translating(work: Callable[[], Result]) -> Result:
    with translated():
        return work()
