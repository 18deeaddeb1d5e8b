"""Which sessions this worker holds: it takes them from the store, keeps their leases alive, and hands them over when wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

import structlog

from server.errors import NotFound, ServerError, SessionBusy, SessionHeld, StaleLease
from server.failpoints import failpoint
from server.pairs import Pair
from server.settings import Settings
from server.store.base import Lease, LeaseHeld, Store
from server.worker.engine import Engine
from server.worker.runners import Runners
from server.worker.session import Session

_LISTEN_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_DECLINE_SECONDS = 0.3
"""How long others need not ask again: a generation may end at any moment."""
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 0.1

log = structlog.get_logger()


class Holdings:
    """Sessions by id, each under a lease of `owner`. `spawn` starts a task that the worker's task group owns."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        engine: Engine,
        runners: Runners,
        store: Store,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._settings, self._owner = settings, owner
        self._engine, self._runners, self._store, self._spawn = engine, runners, store, spawn
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._leaving: set[str] = set()

    async def open(self, session_id: str) -> Session:
        """The session's object here, taking its lease if this worker does not hold it.

        Raises `SessionBusy` while another server generates in it, `SessionHeld` when that does not let go in time, and
        `ModelNotServed`.
        """
        async with self._alone(session_id):
            session = self._engine.sessions.get(session_id)
            if session is not None and time.monotonic() > session.lease_until:
                session = await self._confirmed(session)
            return session or await self._taken(session_id)

    def _alone(self, session_id: str) -> asyncio.Lock:
        """The lock under which one session is taken or disowned: others need not wait for it."""
        return self._opening.setdefault(session_id, asyncio.Lock())

    async def _confirmed(self, session: Session) -> Session | None:
        """The same session if it is still ours; this process may have stood still for longer than its lease."""
        assert session.lease is not None
        await self._renew([session])
        return session if self._engine.sessions.get(session.key) is session else None

    async def _taken(self, session_id: str) -> Session:
        asked_at, lease = await self._acquire(session_id)
        record = await self._store.head(session_id)
        pair = Pair(record.model, record.memory)
        if pair not in self._runners:
            await self._store.release(lease)
            raise self._runners.not_served(pair)
        session = Session(
            session_id,
            record.tenant,
            pair,
            lease,
            lease_until=asked_at + self._settings.lease_seconds,
            journaled=record.journaled,
            open_text=record.open_text,
            open_tokens=record.open_tokens,
            turn=record.turn,
        )
        self._engine.sessions[session_id] = session
        return session

    async def _acquire(self, session_id: str) -> tuple[float, Lease]:
        """A lease, and the monotonic time from which it counts at the latest."""
        settings = self._settings
        deadline = time.monotonic() + settings.lease_wait_seconds
        pause = _SHORTEST_WAIT
        while True:
            asked_at = time.monotonic()
            try:
                return asked_at, await self._store.acquire(session_id, self._owner, settings.lease_seconds)
            except LeaseHeld as held:
                if held.busy:
                    raise SessionBusy("the session is generating on another server; try again shortly") from None
                if asked_at >= deadline:
                    raise SessionHeld(
                        f"another server holds the session and does not let go; its lease ends in {held.seconds:.0f} s",
                        retry_after=max(1.0, held.seconds),
                    ) from None
            await asyncio.sleep(pause)
            pause = min(_LONGEST_WAIT, 2 * pause)

    async def keep(self) -> None:
        """Renew all leases, again and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            held = [session for session in self._engine.sessions.values() if session.lease is not None]
            if not held:
                continue
            try:
                await self._renew(held)
            except ServerError as error:
                # Nothing is lost by waiting: whoever took one over has a newer fence, and our next write will be refused.
                log.warning("leases not renewed", sessions=len(held), reason=error.message)

    async def _renew(self, sessions: list[Session]) -> None:
        until = time.monotonic() + self._settings.lease_seconds
        leases = [session.lease for session in sessions if session.lease is not None]
        outcomes = await self._store.renew(leases, self._settings.lease_seconds)
        for session, outcome in zip(sessions, outcomes, strict=True):
            if outcome is None:
                session.lease_until = until
            elif isinstance(outcome, StaleLease | NotFound):
                log.warning("session lost to another server", session_id=session.key, reason=outcome.message)
                self._engine.moves.drop(session, outcome)
            else:
                raise outcome

    async def listen(self) -> None:
        """Hand over what other servers want. Runs until cancelled."""
        while True:
            try:
                wanted = await self._store.wanted(self._owner, _LISTEN_SECONDS)
            except ServerError:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            for session_id in {*wanted} - self._leaving:
                self._leaving.add(session_id)
                self._spawn(self._hand_over(session_id))

    async def _hand_over(self, session_id: str) -> None:
        try:
            failpoint("handover.before")
            session = self._engine.sessions.get(session_id)
            if session is None:
                await self._disown(session_id)
            else:
                await self._leave(session)
        except (ServerError, LeaseHeld) as error:  # the other one asks again, or has it by now
            log.info("session not handed over", session_id=session_id, reason=str(error))
        finally:
            self._leaving.discard(session_id)

    async def _disown(self, session_id: str) -> None:
        """Give up a lease whose session was dropped here, after a write of unknown outcome for example."""
        async with self._alone(session_id):
            if session_id not in self._engine.sessions:
                lease = await self._store.acquire(session_id, self._owner, self._settings.lease_seconds)
                await self._store.release(lease)

    async def _leave(self, session: Session) -> None:
        """Hand a session over as soon as no request here waits for it; requests that come later wait at its lock."""
        assert session.lease is not None
        deadline = time.monotonic() + self._settings.lease_wait_seconds / 2
        while session.generation is None and time.monotonic() < deadline:
            async with session.lock:
                # Without the lock nothing could move in, and those who wait for that would wait for ever.
                if session.row is not None and session.waiters:
                    waiting = [future for _, future in session.waiters]
                    await asyncio.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
                if self._engine.sessions.get(session.key) is not session:
                    return
                if not session.moving and not session.waiters and session.generation is None:
                    await self._engine.moves.let_go(
                        session, StaleLease("the session was handed over to another server")
                    )
                    return
            await asyncio.sleep(_SHORTEST_WAIT)
        await self._store.decline(session.lease, _DECLINE_SECONDS)
