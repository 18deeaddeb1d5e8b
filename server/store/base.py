"""The contract every store keeps, whatever it is made of.

A session is a record, a journal of token ids and at most one current snapshot. The rules, which the conformance suite in
tests/server/store checks:

1. What `journal` has accepted survives the death of the process and of the machine (fsync before it returns).
2. The journal of a session is gap-free: an entry is accepted only at `journaled`, the count of tokens journaled so far.
3. A write carries a lease. One whose fencing number is not the session's newest is refused with `StaleLease` and changes nothing.
4. `save_snapshot` makes snapshot and pointer visible together or not at all, then trims the journal it covers.
   A snapshot older than the current one is ignored.
5. `delete` leaves nothing behind. An expired session is not found, and is deleted sooner or later.
6. An operation id is recorded in the same transaction as the tokens it journaled. An entry that brings a recorded
   one again is refused with `AlreadyApplied`, or with `OperationMismatch` when its digest differs.

All methods may raise `StoreUnavailable`; those that name a session raise `NotFound`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Turn = Literal["none", "asked", "open", "ended"]
"""Where a chat stands. `none`: no template used, or all turns closed. `asked`: the last message was the user's, an answer is due.
`open`: the assistant's turn is not closed. `ended`: the model sampled its own end-of-turn token, so that only what the
template puts behind that token is missing."""


class AlreadyApplied(Exception):
    """The journal has this operation already, with the same digest; `Store.operation` tells its answer."""


@dataclass(frozen=True)
class SessionRecord:
    """What is known of a session without its memory. Times are seconds since the epoch."""

    id: str
    tenant: str
    model: str
    memory: str
    created_at: float
    updated_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: int | None = None
    expires_at: float | None = None
    version: int = 1
    """Grows with every change of the record, also by appends; the ETag."""
    journaled: int = 0
    """Tokens in the journal since the session began, trimmed ones included."""
    open_text: str = ""
    """The end of the last append, held back until it is certain how it is cut into tokens."""
    open_tokens: int = 0
    """How many tokens `open_text` would be if the session were read now."""
    turn: Turn = "none"

    @property
    def position(self) -> int:
        """Every token the session has taken in."""
        return self.journaled + self.open_tokens


@dataclass(frozen=True)
class Lease:
    """The right to write one session, valid until somebody acquires a newer one."""

    session_id: str
    fence: int


@dataclass(frozen=True)
class OperationRecord:
    """What an operation id stood for: a digest of its request and the answer it got."""

    op_id: str
    request_digest: str
    tokens: int
    position: int


@dataclass(frozen=True)
class JournalEntry:
    """One durable step of a session: tokens taken in, what is still open, and the operation it answers."""

    lease: Lease
    start: int
    """`journaled` before this entry."""
    tokens: Sequence[int]
    open_text: str
    open_tokens: int
    turn: Turn
    operation: OperationRecord | None = None


@dataclass(frozen=True)
class StoredSession:
    """What a worker needs to make a session resident: snapshot, then `tail` in order."""

    record: SessionRecord
    snapshot: bytes | None
    snapshot_position: int
    """Tokens folded into the snapshot; 0 without one."""
    tail: Sequence[int]
    """Journaled tokens from `snapshot_position` to `record.journaled`."""


@dataclass(frozen=True)
class Page:
    """One page of a list."""

    records: Sequence[SessionRecord]
    has_more: bool


class Store(Protocol):
    """See the rules at the top of this file."""

    async def open(self) -> None:
        """Connect, create what is missing, refuse settings that would lose data."""

    async def close(self) -> None:
        """Finish what was begun and let go."""

    async def ping(self) -> None:
        """Raise `StoreUnavailable` when a write would fail."""

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Add a session."""

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record."""

    async def list(self, tenant: str, *, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """Sessions by creation time (id breaks ties), beginning behind the session `after`."""

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

    async def delete(self, tenant: str, session_id: str) -> None:
        """Remove the session and everything of it."""

    async def acquire(self, session_id: str, owner: str) -> Lease:
        """Become the session's only writer; every older lease is void from here on."""

    async def head(self, session_id: str) -> SessionRecord:
        """The newest record, for a worker: tenants are the service's business."""

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | None]:
        """Write many entries in one durable step. One outcome an entry: None, or why that entry alone was refused."""

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """What `op_id` stood for, if it was seen and has not expired."""

    async def load(self, session_id: str) -> StoredSession:
        """Everything needed to go on with the session."""

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Replace the snapshot by one that covers `position` tokens."""

    async def sweep(self) -> int:
        """Delete expired sessions and operation ids, and files nobody points to; how many sessions went."""
