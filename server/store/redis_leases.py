"""Who may write a session: leases in Redis, and word to their holders."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import ServerError
from server.failpoints import failpoint
from server.store.base import Lease, LeaseHeld
from server.store.redis_failures import unavailable
from server.store.redis_keys import WANTED_MILLISECONDS
from server.store.redis_link import Link, encode_text, fence_step, missing, stale, storable

_MOST_WANTED = 1_000


class RedisLeases:
    """One method, one call of the store."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def acquire(self, session_id: str, owner: str, seconds: float) -> Lease:
        """Become the only writer, or have the holder told and raise `LeaseHeld`."""
        failpoint("acquire.before")
        key = self._link.keys.session(storable(session_id))
        slot = owner[: owner.rfind("/") + 1]
        status, *answer = await self._link.run(
            "acquire", [key], encode_text(owner, "owner"), slot, seconds, fence_step()
        )
        if status == b"missing":
            raise missing(session_id)
        if status == b"held":
            holder, left, busy, tell = answer
            if tell:
                await self._tell(holder.decode(), session_id)
            raise LeaseHeld(holder.decode(), float(left), busy=bool(busy))
        self._link.remember_tenant(session_id, answer[1].decode())
        failpoint("acquire.after")
        return Lease(session_id, int(answer[0]))

    async def renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[Exception | None]:
        """Prolong leases; an outcome each."""
        failpoint("renew.before")
        keys = self._link.keys
        calls = [([keys.session(lease.session_id)], (lease.fence, seconds)) for lease in leases]
        outcomes: list[Exception | None] = []
        for lease, answer in zip(leases, await self._link.run_each("renew", calls), strict=True):
            if isinstance(answer, Exception):
                outcomes.append(unavailable(answer))
            else:
                outcomes.append(_renewal(lease, answer))
        return outcomes

    async def release(self, lease: Lease) -> None:
        """End a lease."""
        failpoint("release.before")
        await self._link.run("release", [self._link.keys.session(lease.session_id)], lease.fence)

    async def decline(self, lease: Lease, seconds: float) -> None:
        """Be busy for a while."""
        await self._link.run("decline", [self._link.keys.session(lease.session_id)], lease.fence, seconds)

    async def wanted_now(self, owner: str) -> Sequence[str]:
        """What others have asked for since the last time."""
        found = await self._link.command("LPOP", self._link.keys.wanted(owner), _MOST_WANTED)
        return [name.decode() for name in found or ()]

    async def wait_for_wanted(self, owner: str, seconds: float) -> Sequence[str]:
        """The first that somebody asks for. One that is lost on its way to us is asked for again."""
        found = await self._link.waiting_command("BLPOP", self._link.keys.wanted(owner), max(seconds, 0.01))
        return [] if found is None else [found[1].decode()]

    async def _tell(self, owner: str, session_id: str) -> None:
        await self._link.run("want", [self._link.keys.wanted(owner)], session_id, WANTED_MILLISECONDS)


def _renewal(lease: Lease, answer: Sequence[bytes]) -> ServerError | None:
    if answer[0] == b"missing":
        return missing(lease.session_id)
    return stale(lease, answer[1]) if answer[0] == b"stale" else None
