"""Who may write a session: leases in the embedded store's database. One function, one transaction; every function blocks.

The fencing number alone decides who may write. Owner and times only decide when somebody else may acquire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.errors import NotFound, StaleLease
from server.store.base import Lease, LeaseHeld
from server.store.embedded_database import Database
from server.store.embedded_owners import OwnerLocks
from server.store.embedded_sessions import LIVE, missing, storable

_CLOCK_SLACK_SECONDS = 1.0


class Writable(NamedTuple):
    """What a writer must know of a session; the record without what is sealed, which most writes need not open."""

    id: str
    tenant: str
    fence: int
    version: int
    tag: str
    journaled: int
    ttl_seconds: int | None

    @property
    def etag(self) -> str:
        """As `SessionRecord.etag`."""
        return f"{self.version}-{self.tag}"


@dataclass(frozen=True)
class _Holder:
    """What the row of a session says about its lease."""

    owner: str | None
    lease_from: float
    lease_until: float
    declined_until: float
    wanted: int

    def in_time(self, now: float) -> bool:
        """Whether the lease has not ended. One given in the future was given before the clock was turned back: it could last
        for as long as the clock was ahead, so it counts as ended."""
        return self.lease_from <= now + _CLOCK_SLACK_SECONDS and now < self.lease_until


def acquire(database: Database, session_id: str, owner: str, seconds: float, owners: OwnerLocks, now: float) -> Lease:
    """Raise the session's fencing number, or tell the holder that the session is wanted and raise `LeaseHeld`."""
    with database.writing():
        holder = _holder(database, session_id, now)
        owners.hold(owner)
        held = _refusal(holder, owner, owners, now)
        if held is None:
            row = database.row(
                "UPDATE sessions SET fence = fence + 1, owner = :owner, lease_from = :now, lease_until = :now + :seconds, "
                "declined_until = 0, wanted = 0 WHERE id = :id RETURNING fence",
                {"id": session_id, "owner": owner, "now": now, "seconds": seconds},
            )
        elif not (held.busy or holder.wanted):
            database.run("UPDATE sessions SET wanted = 1 WHERE id = :id", {"id": session_id})
    if held is not None:
        raise held
    assert row is not None, "the session was there in the same transaction"
    return Lease(session_id=session_id, fence=row[0])


def renew(database: Database, leases: Sequence[Lease], seconds: float, now: float) -> Sequence[Exception | None]:
    """Let all those leases that are the newest last until `seconds` from now, in one commit."""
    with database.writing():
        return [_renew(database, lease, seconds, now) for lease in leases]


def release(database: Database, lease: Lease) -> None:
    """End the lease. Its fence stays the newest until somebody acquires."""
    with database.writing():
        database.run(
            "UPDATE sessions SET owner = NULL, lease_until = 0, declined_until = 0, wanted = 0 "
            "WHERE id = :id AND fence = :fence",
            {"id": lease.session_id, "fence": lease.fence},
        )


def decline(database: Database, lease: Lease, seconds: float, now: float) -> None:
    """Have those who want the session told that it is busy."""
    with database.writing():
        database.run(
            "UPDATE sessions SET declined_until = :until, wanted = 0 WHERE id = :id AND fence = :fence",
            {"id": lease.session_id, "fence": lease.fence, "until": now + seconds},
        )


def wanted(database: Database, owner: str) -> Sequence[str]:
    """Sessions of `owner` that somebody asked for since the last call."""
    # Asked many times a second: one look at an index, and no write unless there is news.
    if not database.row("SELECT 1 FROM sessions WHERE owner = :owner AND wanted = 1", {"owner": owner}):
        return []
    with database.writing():
        rows = database.rows(
            "UPDATE sessions SET wanted = 0 WHERE owner = :owner AND wanted = 1 RETURNING id", {"owner": owner}
        )
    return [session_id for (session_id,) in rows]


def leased(database: Database, lease: Lease, now: float) -> Writable:
    """What a write under `lease` needs to know. Raises `StaleLease` for any lease but the newest."""
    row = database.row(
        f"SELECT {', '.join(Writable._fields)} FROM sessions WHERE id = :id AND {LIVE}",
        {"id": storable(lease.session_id), "now": now},
    )
    if row is None:
        raise missing(lease.session_id)
    session = Writable(*row)
    if session.fence != lease.fence:
        raise StaleLease(
            f"Another worker has taken over session {lease.session_id} "
            f"(fence {session.fence}, not {lease.fence}); try again."
        )
    return session


def _holder(database: Database, session_id: str, now: float) -> _Holder:
    row = database.row(
        f"SELECT owner, lease_from, lease_until, declined_until, wanted FROM sessions WHERE id = :id AND {LIVE}",
        {"id": storable(session_id), "now": now},
    )
    if row is None:
        raise missing(session_id)
    return _Holder(*row)


def _refusal(holder: _Holder, owner: str, owners: OwnerLocks, now: float) -> LeaseHeld | None:
    if holder.owner is None or not holder.in_time(now):
        return None
    if _supersedes(owner, holder.owner) or owners.is_dead(holder.owner):
        return None
    return LeaseHeld(holder.owner, holder.lease_until - now, busy=now < holder.declined_until)


def _supersedes(owner: str, holder: str) -> bool:
    """Whether `holder` is the same owner, or another incarnation in the same place: two of them never live at once."""
    slot, divided, _ = owner.rpartition("/")
    return owner == holder or (bool(divided) and slot == holder.rpartition("/")[0])


def _renew(database: Database, lease: Lease, seconds: float, now: float) -> Exception | None:
    try:
        leased(database, lease, now)
    except (NotFound, StaleLease) as refusal:
        return refusal
    held = database.run(
        "UPDATE sessions SET lease_from = :now, lease_until = :now + :seconds WHERE id = :id AND owner IS NOT NULL",
        {"id": lease.session_id, "now": now, "seconds": seconds},
    )
    return None if held else StaleLease(f"The lease of session {lease.session_id} was released; acquire it anew.")
