"""What the tests of stores share: a clock they turn by hand, the stores to test, and short ways to write."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.store.base import JournalEntry, Lease, OperationRecord, SessionRecord, Store, Turn
from server.store.embedded import EmbeddedStore

OPERATION_TTL_SECONDS = 3_600


@dataclass
class Clock:
    """Seconds since the epoch, moved by the test only."""

    now: float

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


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
        )

    def entry(
        self,
        lease: Lease,
        start: int,
        tokens: Sequence[int],
        *,
        open_text: str = "",
        open_tokens: int = 0,
        turn: Turn = "none",
        operation: OperationRecord | None = None,
    ) -> JournalEntry:
        return JournalEntry(lease, start, tokens, open_text, open_tokens, turn, operation)

    def operation(self, op_id: str = "op_one", digest: str = "digest") -> OperationRecord:
        return OperationRecord(op_id=op_id, request_digest=digest, tokens=3, position=7)


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


@pytest.fixture(params=["embedded"])
def another(request: pytest.FixtureRequest, folder: Path, clock: Clock) -> OpenAnother:
    """Makes one more store object, not yet open, over the same data."""
    makers: dict[str, OpenAnother] = {
        "embedded": lambda: EmbeddedStore(folder, clock=clock, operation_ttl_seconds=OPERATION_TTL_SECONDS),
    }
    return makers[request.param]


@pytest.fixture
async def store(another: OpenAnother) -> AsyncIterator[Store]:
    store = another()
    await store.open()
    yield store
    await store.close()
