"""Who comes and who goes: sessions on their way from the store to a row in memory, and back. On the event loop's thread."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

import structlog

from server.errors import ServerError, StoreUnavailable
from server.store.base import Store
from server.worker.journal import Journal
from server.worker.metrics import WorkerMetrics
from server.worker.residency import Holder, Queued, Residency, in_turn, leavers
from server.worker.runners import Runners
from server.worker.session import Session
from server.worker.shares import Shares

Args = TypeVarTuple("Args")
T = TypeVar("T")
log = structlog.get_logger()
_SAVE_AGAIN_SECONDS = 1.0
"""How long a snapshot that could not be written is left alone."""


class Moves:
    """The sessions that this worker knows, and which of them are resident. `wake` tells the loop that something has changed."""

    def __init__(
        self,
        runners: Runners,
        store: Store,
        journal: Journal,
        compute: ThreadPoolExecutor,
        moving: ThreadPoolExecutor,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        metrics: WorkerMetrics,
        shares: Shares,
        wake: Callable[[], None],
    ) -> None:
        self._runners, self._store, self._journal, self._shares = runners, store, journal, shares
        self._compute, self._moving, self._spawn, self._metrics = compute, moving, spawn, metrics
        self._wake = wake
        self.sessions: dict[str, Session] = {}
        self.residency = Residency(runners.rows)
        self._moves: set[asyncio.Task[None]] = set()

    async def compute(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Run on the compute thread, between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._compute, work, *args)

    async def _beside_steps(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Run on the thread for what moves in and out, while steps go on."""
        return await asyncio.get_running_loop().run_in_executor(self._moving, work, *args)

    def admit(self) -> None:
        """Give rows to sessions that have work and none, and send others away where there are too few: see `leavers`."""
        waiting = self.waiting()
        now = time.monotonic()
        for session in waiting:
            session.queued_at = session.queued_at or now
        rows = Counter(session.tenant for session in self.sessions.values() if self.residency.holds(session.key))
        queue = [Queued(one.key, one.tenant, one.queued_at or now, self._shares.had(one.tenant)) for one in waiting]
        for key in in_turn(queue, rows):
            session = self.sessions[key]
            row = self.residency.take(session.key, session.pair)
            if row is not None:
                self._move(session, self._move_in(session, row))
        short = Counter(session.pair for session in waiting if not session.moving)
        if not short:
            return
        short.subtract(other.pair for other in self.sessions.values() if other.moving and other.row is not None)
        holders = [holder for key in self.residency.by_age if (holder := self._holder(key, now)) is not None]
        for key in leavers(short, holders, now):
            leaving = self.sessions[key]
            self._move(leaving, self._move_out(leaving))

    def waiting(self) -> list[Session]:
        """Those that have work and no row, and are not on the way to one."""
        return [
            session
            for session in self.sessions.values()
            if session.row is None
            and session.lease is not None
            and session.has_work
            and not session.moving
            # One that was dropped on its way in has its row until it arrives.
            and not self.residency.holds(session.key)
        ]

    def _move(self, session: Session, move: Coroutine[Any, Any, None]) -> None:
        session.moving = True
        task = self._spawn(move)
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def settled(self) -> None:
        """Wait until nobody is on the way in or out."""
        while self._moves:
            await asyncio.wait(self._moves)

    def _holder(self, key: str, now: float) -> Holder | None:
        """The resident session of that key if it could be sent away now."""
        session = self.sessions.get(key)
        if session is None or session.lease is None or session.moving or session.held or session.generation is not None:
            return None
        clean = session.saved == session.folded
        if not clean and now < session.save_again_at:
            return None
        return Holder(key, session.tenant, session.pair, clean, session.arrived_at if session.has_work else None)

    async def _move_in(self, session: Session, row: int) -> None:
        """Snapshot, then the journal behind it: the same state as before."""
        try:
            async with session.lock:
                with self._metrics.restore():
                    stored = await self._store.load(session.key)
                    runner = self._runners[session.pair]
                    state = await self._beside_steps(runner.decode, stored.snapshot)
                    session.folded = await self.compute(runner.lay, row, state)
                session.pending.clear()
                session.pending.extend(stored.tail)
                session.echo = 0
                session.saved = session.folded
                session.journaled = stored.record.journaled
                session.changed_since = time.monotonic() if stored.tail else None
                if stored.skipped:
                    log.error("damaged snapshot passed over", session_id=session.key, generations=stored.skipped)
            if self.sessions.get(session.key) is session:
                session.row, session.arrived_at, session.queued_at = row, time.monotonic(), None
            else:  # dropped on the way in
                self.residency.give_back(session.key)
        except ServerError as error:
            self.residency.give_back(session.key)
            self.drop(session, error)
        finally:
            session.moving = False
            session.notify()
            self._wake()

    async def _move_out(self, session: Session) -> None:
        """Write a session out and give its row back. What it has not read yet is journaled, and comes in with it again."""
        reads = session.has_work
        try:
            saved = await self._save(session)
            leaves = session.generation is None if reads else not session.has_work
            if saved and leaves and session.row is not None:
                self.residency.give_back(session.key)
                session.row = None
                session.pending.clear()
                if not session.users and not session.has_work:
                    self.sessions.pop(session.key, None)
                    await self._release(session)
        finally:
            session.moving = False
            self._wake()

    async def let_go(self, session: Session, error: Exception) -> None:
        """Write a session out, forget it with `error` for whoever comes to it late, and let other servers have it.

        Its lock is held, and it neither generates nor moves.
        """
        session.moving = True
        await self._journal.settled()
        if session.row is not None:
            await self._save(session)
        self.drop(session, error)
        await self._release(session)

    async def _release(self, session: Session) -> None:
        assert session.lease is not None
        try:
            await self._store.release(session.lease)
        except ServerError as error:  # then it expires by itself
            log.info("lease not released", session_id=session.key, reason=error.message)

    async def take_over(self, parent: Session, scratch: Session) -> bool:
        """Make `scratch` a resident copy of `parent`, which is resident with nothing pending.

        Where no row is free the parent is written out and lends its own. False when the parent changed meanwhile.
        """
        row = self.residency.take(scratch.key, scratch.pair)
        if row is not None:
            assert parent.row is not None
            await self.compute(self._runners[parent.pair].copy, parent.row, row)
        else:
            parent.moving = True
            try:
                if not await self._save(parent) or parent.has_work or parent.row is None:
                    return False
                row, parent.row = parent.row, None
                self.residency.give_back(parent.key)
                taken = self.residency.take(scratch.key, scratch.pair)
                assert taken == row
            finally:
                parent.moving = False
        scratch.row = row
        self.sessions[scratch.key] = scratch
        self._wake()
        return True

    def release(self, scratch: Session) -> None:
        """Let a scratch copy go."""
        if self.sessions.pop(scratch.key, None) is not None:
            self.residency.give_back(scratch.key)

    def drop(self, session: Session, error: Exception) -> None:
        """Forget a session without writing it; the store has all that was acknowledged."""
        if self.sessions.get(session.key) is not session:
            return
        del self.sessions[session.key]
        if session.row is not None:
            self.residency.give_back(session.key)
            session.row = None
        session.fail(error)
        self._wake()

    async def snapshot(self, session: Session) -> bool:
        """Write a session's snapshot, unless one is being written. False when nothing could be written."""
        if session.moving or session.row is None or session.lease is None:
            return False
        saved = session.saved
        if session.folded == saved:
            return True
        return await self._save(session)

    async def _save(self, session: Session) -> bool:
        """Save a resident session and note what is covered; drops the session when its lease is gone."""
        assert session.row is not None
        assert session.lease is not None
        if session.saved == session.folded:
            return True
        runner = self._runners[session.pair]
        lifted = await self.compute(runner.lift, session.row)
        position, data = await self._beside_steps(runner.encode, lifted)
        await self._journal.settled()  # a snapshot must never be ahead of the journal
        if self.sessions.get(session.key) is not session:
            return False
        try:
            with self._metrics.snapshot():
                await self._store.save_snapshot(session.lease, position, data)
        except StoreUnavailable as error:
            log.warning("snapshot not written", session_id=session.key, reason=error.message)
            session.save_again_at = time.monotonic() + _SAVE_AGAIN_SECONDS
            asyncio.get_running_loop().call_later(_SAVE_AGAIN_SECONDS, self._wake)  # somebody may wait for its row
            return False
        except ServerError as error:
            self.drop(session, error)
            return False
        session.saved = max(session.saved, position)
        session.changed_since = time.monotonic() if session.folded > position else None
        return True
