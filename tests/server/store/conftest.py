"""What the tests of stores share: a clock they turn by hand, the stores to test, and short ways to write."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from bench.redis_process import RedisClusterProcesses, RedisProcess
from server.store.base import Finish, GenerationRecord, JournalEntry, Lease, OperationRecord, SessionRecord, Store
from server.store.embedded import EmbeddedStore
from server.store.redis import RedisOptions, RedisStore
from server.store.sealing import EncryptingSealer, PlainSealer, Sealer

OPERATION_TTL_SECONDS = 3_600
PATIENCE = 10.0
"""Seconds that Redis may take where a test is not about that: machines that run tests are busy."""


@dataclass
class Clock:
    """Seconds since the epoch, moved by the test only."""

    now: float

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds

    async def passing(self, seconds: float) -> None:
        """Turned, and waited for: a server's own timers do not look at this clock."""
        self.now += seconds
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Make:
    """Makes what a test needs with everything that does not matter to it filled in."""

    clock: Clock

    def record(
        self,
        session_id: str = "sess_one",
        *,
        tenant: str = "tenant",
        created_at: float | None = None,
        ttl_seconds: int | None = None,
        metadata: dict[str, str] | None = None,
        **others: Any,
    ) -> SessionRecord:
        moment = self.clock.now if created_at is None else created_at
        return SessionRecord(
            id=session_id,
            tenant=tenant,
            model="model",
            memory="window",
            created_at=moment,
            updated_at=moment,
            ttl_seconds=ttl_seconds,
            metadata=metadata or {},
            **others,
        )

    def entry(self, lease: Lease, start: int, tokens: Sequence[int] = (), **others: Any) -> JournalEntry:
        return JournalEntry(lease, start, tokens, **{"open_text": "", "open_tokens": 0, "turn": "none", **others})

    def operation(
        self, op_id: str = "op_one", digest: str = "digest", generation_id: str | None = None
    ) -> OperationRecord:
        return OperationRecord(op_id, digest, tokens=3, position=7, generation_id=generation_id)

    def generation(
        self,
        generation_id: str = "gen_one",
        *,
        session_id: str = "sess_one",
        start: int = 0,
        tokens: Sequence[int] = (),
        finish: Finish | None = None,
    ) -> GenerationRecord:
        return GenerationRecord(generation_id, session_id, b'{"prompt": "\xff"}', start, 2, tuple(tokens), finish)

    async def begun(
        self, store: Store, session_id: str = "sess_one", *, ttl_seconds: int | None = None, owner: str = "server/0/1"
    ) -> Lease:
        """A new session, held for a minute."""
        await store.create(self.record(session_id, ttl_seconds=ttl_seconds))
        return await store.acquire(session_id, owner, 60)

    async def written(self, store: Store, *entries: JournalEntry) -> list[str]:
        """The ETags of entries that must all be accepted."""
        etags = []
        for outcome in await store.journal(entries):
            assert isinstance(outcome, str), outcome
            etags.append(outcome)
        assert len(etags) == len(entries)
        return etags

    async def appended(self, store: Store, lease: Lease, *tokens: int) -> str:
        """The ETag after tokens were added where the session ends."""
        start = (await store.head(lease.session_id)).journaled
        [etag] = await self.written(store, self.entry(lease, start, tokens))
        return etag

    async def listed(self, store: Store, limit: int = 100, order: Literal["asc", "desc"] = "asc") -> list[str]:
        """Ids of all the tenant's sessions, page by page."""
        seen: list[str] = []
        while True:
            page = await store.list("tenant", limit=limit, after=seen[-1] if seen else None, order=order)
            assert len(page.records) <= limit
            seen += [record.id for record in page.records]
            if not page.has_more:
                return seen

    def calls(self, store: Store, session_id: str, tenant: str = "tenant") -> list[Callable[[], Awaitable[object]]]:
        """Every method that names a session and raises when it is not there."""
        lease = Lease(session_id, 1)
        child = SessionRecord("sess_child", tenant, "model", "window", 1.0, 1.0)
        return [
            lambda: store.get(tenant, session_id),
            lambda: store.head(session_id),
            lambda: store.update(tenant, session_id, metadata={"a": "b"}),
            lambda: store.fork(tenant, session_id, child),
            lambda: store.acquire(session_id, "server/0/1", 60),
            lambda: store.operation(session_id, "op_one"),
            lambda: store.load(session_id),
            lambda: store.save_snapshot(lease, 0, b"state"),
            lambda: store.delete(tenant, session_id),
        ]


@dataclass(frozen=True)
class Bench:
    """Where one test keeps its sessions: makes store objects, not yet open, over the same data."""

    kind: str
    clock: Clock
    folder: Path
    url: str = ""
    prefix: str = ""
    """Keys in Redis begin with it: the tests of one run share a server, and never meet."""

    def again(self) -> Bench:
        """An empty one of the same kind."""
        nonce = secrets.token_hex(4)
        return replace(self, folder=self.folder / nonce, prefix=f"test-{nonce}")

    def store(self, *, sealer: Sealer | None = None, generations: int = 2) -> Store:
        if self.kind == "embedded":
            return EmbeddedStore(
                self.folder,
                sealer=sealer,
                clock=self.clock,
                operation_ttl_seconds=OPERATION_TTL_SECONDS,
                generations=generations,
            )

        return RedisStore(
            RedisOptions(self.url, prefix=self.prefix, timeout_seconds=PATIENCE),
            sealer=sealer or PlainSealer(),
            clock=self.clock,
            operation_ttl_seconds=OPERATION_TTL_SECONDS,
            generations=generations,
        )


OpenAnother = Callable[[], Store]


@pytest.fixture
def clock() -> Clock:
    return Clock(now=float(int(time.time())))


@pytest.fixture
def make(clock: Clock) -> Make:
    return Make(clock)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis"), appendfsync="everysec") as process:
        yield process


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterProcesses]:
    with RedisClusterProcesses(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=["embedded", "redis", "redis-cluster"])
def bench(request: pytest.FixtureRequest, folder: Path, clock: Clock) -> Bench:
    """Empty, of each kind in turn."""
    kind: str = request.param
    servers = {"redis": "redis_server", "redis-cluster": "redis_cluster"}
    url = request.getfixturevalue(servers[kind]).url if kind in servers else ""
    return Bench(kind, clock, folder, url, prefix=f"test-{secrets.token_hex(4)}")


@pytest.fixture
def another(bench: Bench) -> OpenAnother:
    """Makes one more store object, not yet open, over the same data."""
    return bench.store


@pytest.fixture
async def store(another: OpenAnother) -> AsyncIterator[Store]:
    store = another()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(another: OpenAnother) -> AsyncIterator[Store]:
    """As another server would have it open."""
    store = another()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def embedded(folder: Path, clock: Clock) -> AsyncIterator[EmbeddedStore]:
    """With the settings it has when nobody says otherwise."""
    store = EmbeddedStore(folder, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def encrypting() -> Sealer:
    return EncryptingSealer({"key": b"k" * 32})
