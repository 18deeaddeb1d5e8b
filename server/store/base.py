"""The contract every store keeps, whatever it is made of.

A session is a record, a journal of token ids and up to two snapshots: the current generation and the one before it. The rules,
which the conformance suite in tests/server/store checks for every store:

1.  What `journal` has accepted survives the death of the process, and that of the machine where `durability` says so.
2.  The journal of a session is gap-free: an entry is accepted only at `journaled`, the count of tokens journaled so far. One at
    another place, or a snapshot beyond it, is of a history that the store lost, and is refused like a stale lease.
3.  A write carries a lease. One whose fencing number is not the session's newest is refused with `StaleLease` and changes
    nothing, however late it arrives. Expiry of a lease only lets somebody else acquire: the fence alone decides who may write.
4.  `save_snapshot` makes snapshot and pointer visible together or not at all. The journal is trimmed only as far as the oldest
    kept generation covers it. A snapshot older than the current one is ignored.
5.  `load` finds out whether a snapshot is whole. One that is damaged or missing is passed over: the generation before it, or
    none at all, and a longer journal tail give the same session. Only when no way is left is it `StateRefused`.
6.  `delete` leaves nothing behind. An expired session is not found, and is deleted sooner or later.
7.  What an entry brings (tokens, operation, generation, finish) is recorded in one transaction. An entry that brings a
    recorded operation again is refused with `AlreadyApplied`, or with `OperationMismatch` when its digest differs.
8.  A fork shares its parent's snapshots until it writes its own: no state is copied. Deleting the one leaves the other whole.
9.  After `StoreUnavailable` from a write it is unknown whether it took place. Its author acquires the session anew: then the
    fence refuses it should it still arrive, and `head` tells what is there.

All methods may raise `StoreUnavailable`; those that name a session raise `NotFound`. A caller that is cancelled stops waiting;
what was begun goes on to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from server.errors import StaleLease

Turn = Literal["none", "asked", "open", "ended"]
"""Where a chat stands. `none`: no template used, or all turns closed. `asked`: the last message was the user's, an answer is due.
`open`: the assistant's turn is not closed. `ended`: the model sampled its own end-of-turn token, so that only what the
template puts behind that token is missing."""

Reason = Literal["stop", "length", "cancelled"]
"""Why a generation ended."""

Durability = Literal["fsync", "one_second", "memory"]
"""What an accepted entry survives beyond the death of processes: loss of power at once; loss of power, but for what came in within
about a second before it; nothing."""


class AlreadyApplied(Exception):
    """The journal has this operation already, with the same digest; `Store.operation` tells its answer."""


class LeaseHeld(Exception):
    """Somebody else holds the session, and has been told that it is wanted.

    `seconds` until the lease ends unless it is renewed; `busy` when the holder has declined because it is generating.
    """

    def __init__(self, owner: str, seconds: float, *, busy: bool) -> None:
        super().__init__(f"held by {owner} for another {seconds:.1f} s")
        self.owner, self.seconds, self.busy = owner, seconds, busy


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
    """Grows with every change of the record, also by appends."""
    tag: str = ""
    """Eight hex digits, drawn anew by the store with every change. A store that lost its newest writes counts versions again from
    an older one; the tag tells the second history from the first."""
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

    @property
    def etag(self) -> str:
        """What `If-Match` is compared with."""
        return f"{self.version}-{self.tag}"


@dataclass(frozen=True)
class Lease:
    """The right to write one session, valid until somebody acquires a newer one."""

    session_id: str
    fence: int


def other_history(session_id: str, there: int, wanted: int) -> StaleLease:
    """The refusal of a writer who believes in another length of the journal than the store."""
    return StaleLease(
        f"The store has {there} tokens of session {session_id}, and its writer {wanted}: the store has lost what it had, or "
        "another has written. Try again: the session is read anew."
    )


@dataclass(frozen=True)
class OperationRecord:
    """What an operation id stood for: a digest of its request and the answer it got."""

    op_id: str
    request_digest: str
    tokens: int
    position: int
    generation_id: str | None = None
    """The generation that it began, if it was one."""
    etag: str | None = field(default=None, compare=False)
    """The session's behind it; the store fills it in."""


@dataclass(frozen=True)
class Finish:
    """How a generation ended. `sampled` counts an end token too that was not remembered; `position` is the session's behind it."""

    reason: Reason
    sampled: int
    position: int


@dataclass(frozen=True)
class GenerationRecord:
    """A generation, so that it can be told again, or gone on with, by any worker."""

    id: str
    session_id: str
    request: bytes
    """What a worker needs to go on with it; opaque to the store."""
    start: int
    """`journaled` when its first token was sampled."""
    prompt_tokens: int
    tokens: Sequence[int] = ()
    """Sampled so far, and journaled."""
    finish: Finish | None = None


@dataclass(frozen=True)
class JournalEntry:
    """One durable step of a session: tokens taken in, what is still open, the operation it answers, the generation it is of."""

    lease: Lease
    start: int
    """`journaled` before this entry."""
    tokens: Sequence[int]
    open_text: str
    open_tokens: int
    turn: Turn
    operation: OperationRecord | None = None
    if_match: frozenset[str] | None = None
    """The session's ETag must be one of these, else the entry is refused with `PreconditionFailed`."""
    begins: GenerationRecord | None = None
    """A generation to record, with the tokens and finish it has already."""
    sampled_by: str | None = None
    """The recorded generation that sampled `tokens`: they are added to its own."""
    finish: Finish | None = None
    """How the generation `sampled_by` ended."""
    silent: bool = False
    """Record operation and generation only; the session, its version and ETag included, stays as it is (`tokens` is empty)."""


@dataclass(frozen=True)
class StoredSession:
    """What a worker needs to make a session resident: snapshot, then `tail` in order."""

    record: SessionRecord
    snapshot: bytes | None
    snapshot_position: int
    """Tokens folded into the snapshot; 0 without one."""
    tail: Sequence[int]
    """Journaled tokens from `snapshot_position` to `record.journaled`."""
    skipped: int = 0
    """Newer generations that were damaged or missing."""


@dataclass(frozen=True)
class Claim:
    """Which session an operation id makes, and the answer it got, once it has been given."""

    session_id: str
    answer: bytes | None = None


@dataclass(frozen=True)
class Page:
    """One page of a list."""

    records: Sequence[SessionRecord]
    has_more: bool


class Store(Protocol):
    """See the rules at the top of this file."""

    @property
    def durability(self) -> Durability:
        """What an accepted entry survives; known once the store is open."""

    async def open(self) -> None:
        """Connect, create what is missing, refuse settings that would lose data."""

    async def close(self) -> None:
        """Finish what was begun and let go."""

    async def ping(self) -> None:
        """Raise `StoreUnavailable` when a write would fail."""

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Add a session. One that is there already, of the same tenant, is returned as it is."""

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
        if_match: frozenset[str] | None = None,
    ) -> SessionRecord:
        """Change metadata or lifetime. Raises `PreconditionFailed` when the newest ETag is not in `if_match`."""

    async def delete(self, tenant: str, session_id: str, *, if_match: frozenset[str] | None = None) -> None:
        """Remove the session and everything of it."""

    async def fork(
        self, tenant: str, session_id: str, child: SessionRecord, *, if_match: frozenset[str] | None = None
    ) -> SessionRecord:
        """Add `child`, which goes on from what is journaled of the session at this moment, snapshots shared. Of `child`, id,
        times, metadata and lifetime count; the rest is the parent's. One that is there already is returned as it is."""

    async def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        """Add a session that begins with a snapshot at `record.journaled - len(tail)` and a journal tail behind it. One that is
        there already, of the same tenant, is returned as it is."""

    async def claim(self, tenant: str, op_id: str, request_digest: str, session_id: str) -> Claim:
        """Tie an operation that makes a session to `session_id`, unless it was tied before: then the first claim is returned.
        Raises `OperationMismatch` when that had another digest."""

    async def settle(self, tenant: str, op_id: str, answer: bytes) -> None:
        """Keep the first answer of a claimed operation. Later ones are ignored."""

    async def acquire(self, session_id: str, owner: str, seconds: float) -> Lease:
        """Become the session's only writer for `seconds`; every older lease is void from here on.

        Owners are named `server/worker/incarnation`. The lease is given if nobody holds it, if it has expired, or if its holder
        is known to be dead, as an earlier incarnation of the same server and worker is, or is `owner` itself. Raises `LeaseHeld`
        otherwise.
        """

    async def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[Exception | None]:
        """Hold on for another `seconds`. One outcome a lease: None, or `StaleLease` or `NotFound`."""

    async def release(self, lease: Lease) -> None:
        """Let others acquire at once. A stale lease, or one of a session that is gone, is ignored."""

    async def decline(self, lease: Lease, seconds: float) -> None:
        """Let others know, for `seconds`, that the session cannot be had yet. A stale lease is ignored."""

    async def wanted(self, owner: str, seconds: float) -> Sequence[str]:
        """Sessions of this owner that others would acquire; waits up to `seconds` for the first."""

    async def head(self, session_id: str) -> SessionRecord:
        """The newest record, for a worker: tenants are the service's business."""

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        """Write many entries in one durable step, in order. One outcome an entry: the session's new ETag, or why that entry
        alone was refused."""

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """What `op_id` stood for, if it was seen and has not expired."""

    async def generation(self, generation_id: str) -> GenerationRecord | None:
        """A recorded generation, if it has not expired and its session is there."""

    async def load(self, session_id: str) -> StoredSession:
        """Everything needed to go on with the session."""

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Make the current snapshot the one before, and this one, which covers `position` tokens, the current."""

    async def sweep(self) -> int:
        """Delete expired sessions and operation ids, and bytes nobody points to; how many sessions went."""
