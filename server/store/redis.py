"""The store for many servers: everything in one Redis, primary with Sentinels, or cluster. docs/redis.md has the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

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
from server.store.redis_forks import RedisForks
from server.store.redis_journal import RedisJournal
from server.store.redis_leases import RedisLeases
from server.store.redis_link import Link
from server.store.redis_options import RedisOptions
from server.store.redis_sessions import RedisSessions
from server.store.redis_snapshots import RedisSnapshots
from server.store.redis_sweep import RedisSweep
from server.store.sealing import Sealer

__all__ = ["RedisOptions", "RedisStore"]


class RedisStore:
    """`Store` in Redis 6.2 or newer, or Valkey.

    Time is Redis's own, so that no server's clock matters; `clock` stands for it in tests. `generations` is how many snapshots
    a session keeps. Use from one event loop; call `open` first and `close` last.
    """

    def __init__(
        self,
        options: RedisOptions,
        *,
        sealer: Sealer,
        clock: Callable[[], float] | None = None,
        operation_ttl_seconds: float = 86_400,
        generations: int = 2,
    ) -> None:
        self._link = Link(options, sealer, clock, operation_ttl_seconds, generations)
        self._sessions = RedisSessions(self._link)
        self._leases = RedisLeases(self._link)
        self._journal = RedisJournal(self._link)
        self._snapshots = RedisSnapshots(self._link, self._sessions)
        self._forks = RedisForks(self._link, self._sessions, self._snapshots)
        self._sweep = RedisSweep(self._link, self._sessions, self._forks)

    @property
    def durability(self) -> Durability:
        """What Redis's persistence promises; "memory" until Redis has been reached."""
        return self._link.durability or "memory"

    async def open(self) -> None:
        """Connect. Raises `UnfitRedis` when Redis would throw sessions away or is too old. One that is out of reach is no error:
        calls raise `StoreUnavailable` until it is there."""
        await self._link.open()

    async def close(self) -> None:
        """Finish what was begun and let go."""
        await self._link.close()

    async def ping(self) -> None:
        """Write something small on every primary."""
        await self._link.call(self._link.beat)

    async def create(self, record: SessionRecord) -> SessionRecord:
        """See `Store.create`. Raises `Internal` when the id is another tenant's or the record claims journaled tokens."""
        return await self._link.call(lambda: self._sessions.create(record))

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """See `Store.get`."""
        return await self._link.call(lambda: self._sessions.get(tenant, session_id))

    async def list(self, tenant: str, *, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """See `Store.list`. Raises `InvalidRequest` (param `after`) when `after` is not a session of the tenant."""
        assert limit > 0, "the routes check the limit"
        return await self._link.call(lambda: self._sessions.page(tenant, limit, after, order))

    async def update(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | Literal["keep"] | None = "keep",
        if_match: frozenset[str] | None = None,
    ) -> SessionRecord:
        """See `Store.update`."""
        return await self._link.call(lambda: self._sessions.update(tenant, session_id, metadata, ttl_seconds, if_match))

    async def delete(self, tenant: str, session_id: str, *, if_match: frozenset[str] | None = None) -> None:
        """See `Store.delete`."""
        await self._link.call(lambda: self._sessions.delete(tenant, session_id, if_match))

    async def fork(
        self, tenant: str, session_id: str, child: SessionRecord, *, if_match: frozenset[str] | None = None
    ) -> SessionRecord:
        """See `Store.fork`."""
        return await self._link.call(lambda: self._forks.fork(tenant, session_id, child, if_match))

    async def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        """See `Store.adopt`. Raises `Internal` when snapshot and tail do not add up to `record.journaled`."""
        return await self._link.call_with_blobs(lambda: self._forks.adopt(record, snapshot, tail))

    async def claim(self, tenant: str, op_id: str, request_digest: str, session_id: str) -> Claim:
        """See `Store.claim`."""
        return await self._link.call(lambda: self._sessions.claim(tenant, op_id, request_digest, session_id))

    async def settle(self, tenant: str, op_id: str, answer: bytes) -> None:
        """See `Store.settle`."""
        await self._link.call(lambda: self._sessions.settle(tenant, op_id, answer))

    async def acquire(self, session_id: str, owner: str, seconds: float) -> Lease:
        """See `Store.acquire`."""
        return await self._link.call(lambda: self._leases.acquire(session_id, owner, seconds))

    async def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[Exception | None]:
        """See `Store.renew`. A lease whose answer was lost has the outcome `StoreUnavailable`."""
        if not leases:
            return []
        return await self._link.call(lambda: self._leases.renew(tuple(leases), seconds))

    async def release(self, lease: Lease) -> None:
        """See `Store.release`."""
        await self._link.call(lambda: self._leases.release(lease))

    async def decline(self, lease: Lease, seconds: float) -> None:
        """See `Store.decline`."""
        await self._link.call(lambda: self._leases.decline(lease, seconds))

    async def wanted(self, owner: str, seconds: float) -> Sequence[str]:
        """See `Store.wanted`."""
        found = await self._link.call(lambda: self._leases.wanted_now(owner))
        if found or seconds <= 0:
            return found
        return await self._link.call_waiting(lambda: self._leases.wait_for_wanted(owner, seconds), seconds)

    async def head(self, session_id: str) -> SessionRecord:
        """See `Store.head`."""
        return await self._link.call(lambda: self._sessions.head(session_id))

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        """See `Store.journal`. An entry whose answer was lost has the outcome `StoreUnavailable`; it is raised when nothing was
        sent, or no answer came at all."""
        if not entries:
            return []
        return await self._link.call(lambda: self._journal.journal(tuple(entries)))

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """See `Store.operation`."""
        return await self._link.call(lambda: self._journal.operation(session_id, op_id))

    async def generation(self, generation_id: str) -> GenerationRecord | None:
        """See `Store.generation`."""
        return await self._link.call(lambda: self._journal.generation(generation_id))

    async def load(self, session_id: str) -> StoredSession:
        """See `Store.load`."""
        return await self._link.call_with_blobs(lambda: self._snapshots.load(session_id))

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """See `Store.save_snapshot`. Raises `Internal` for a `position` beyond the journal."""
        await self._link.call_with_blobs(lambda: self._snapshots.save(lease, position, snapshot))

    async def sweep(self) -> int:
        """See `Store.sweep`. Bytes that nobody points to end by themselves."""
        return await self._sweep.run()
