"""What is cleaned up in Redis from time to time. Any number of servers may do it at once."""

from __future__ import annotations

import asyncio

from server.store.redis_forks import RedisForks
from server.store.redis_link import Link
from server.store.redis_sessions import RedisSessions

_BATCH = 20


class RedisSweep:
    """Expired sessions, and forks that broke off. Old operations go with the journal's own entries, or by themselves."""

    def __init__(self, link: Link, sessions: RedisSessions, forks: RedisForks) -> None:
        self._link, self._sessions, self._forks = link, sessions, forks

    async def run(self) -> int:
        """Sweep everything that is due; how many sessions went."""
        gone = 0
        while (batch := await self._link.call(self._expired)) is not None:
            gone += batch
        while await self._link.call(self._forks.sweep):
            pass
        return gone

    async def _expired(self) -> int | None:
        """A few, so that each call keeps its time; None when none is due."""
        due = await self._link.run("due", [self._link.keys.expiries], _BATCH)
        if not due:
            return None
        return sum(await asyncio.gather(*(self._sessions.expire(member.decode()) for member in due)))
