"""How text gets into a session: read on a thread of its own, journaled, then handed to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from server.errors import PreconditionFailed, SessionBusy
from server.settings import Settings
from server.store.base import AlreadyApplied, GenerationRecord, JournalEntry, OperationRecord, Store, other_history
from server.worker.engine import Engine
from server.worker.journal import Journal
from server.worker.session import Session
from server.worker.text import Intake

Args = TypeVarTuple("Args")
T = TypeVar("T")


class Intakes:
    """See the top of this file."""

    def __init__(
        self, settings: Settings, engine: Engine, store: Store, journal: Journal, reading: ThreadPoolExecutor
    ) -> None:
        self._settings, self._engine, self._store, self._journal = settings, engine, store, journal
        self._reading = reading

    async def read(self, read: Callable[[*Args], T], *args: *Args) -> T:
        """Cut text into tokens, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, read, *args)

    async def commit(
        self,
        session: Session,
        intake: Intake,
        operation: OperationRecord | None,
        *,
        if_match: frozenset[str] | None,
        begins: GenerationRecord | None = None,
    ) -> str:
        """Make an intake durable, then let the engine have it. The session's lock is held. Returns the new ETag."""
        assert session.lease is not None
        entry = JournalEntry(
            lease=session.lease,
            start=session.journaled,
            tokens=intake.tokens,
            open_text=intake.open_text,
            open_tokens=intake.open_tokens,
            turn=intake.turn,
            operation=operation,
            if_match=if_match,
            begins=begins,
        )
        try:
            etag = await self._journal.add(entry)
        except AlreadyApplied:
            raise SessionBusy("the same operation is being applied right now; ask again") from None
        except PreconditionFailed:
            await self._drop_if_elsewhere(session)
            raise
        except Exception as error:
            self._engine.moves.drop(session, error)
            raise
        session.open_text, session.open_tokens, session.turn = intake.open_text, intake.open_tokens, intake.turn
        session.take(intake.tokens)
        session.touched = time.monotonic()
        session.changed_since = session.changed_since or session.touched
        self._engine.wake()
        return etag

    async def _drop_if_elsewhere(self, session: Session) -> None:
        """An ETag that the client had from us may be unknown to a store that lost its newest writes: then we are ahead of it."""
        journaled = (await self._store.head(session.key)).journaled
        if journaled != session.journaled:
            self._engine.moves.drop(session, other_history(session.key, journaled, session.journaled))

    async def check_match(self, session: Session, if_match: frozenset[str] | None) -> None:
        """Raise `PreconditionFailed` if the session's ETag is another, for a request that journals nothing."""
        if if_match is not None and (await self._store.head(session.key)).etag not in if_match:
            await self._drop_if_elsewhere(session)
            raise PreconditionFailed("the session has changed since; get it again and use its new ETag")

    async def backlog(self, session: Session) -> None:
        """Backpressure: wait while too much is journaled and not yet folded."""
        surplus = session.journaled - self._settings.backlog_tokens
        if surplus > session.folded:
            await session_reached(session, self._engine, surplus)


async def session_reached(session: Session, engine: Engine, target: int) -> None:
    """Wait until the session is resident and `target` tokens are folded."""
    future = session.reached(target)
    engine.wake()
    await future
