"""Which generations run in a worker, who listens to each, and how they are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ServerError
from server.worker.engine import Engine
from server.worker.generating import cancel, interrupt
from server.worker.journal import Journal
from server.worker.session import Generation, Session


class Running:
    """All generations of one worker, those that wait to begin included."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self._engine, self._journal = engine, journal
        self._found: dict[str, tuple[Session, Generation] | None] = {}
        """By id; None for one that has not begun yet."""
        self._cancelled: set[str] = set()
        """Those that were cancelled before they began."""
        self._listeners: set[int] = set()
        """Requests that are being answered with events."""

    @contextmanager
    def expected(self, generation_id: str, listener: int) -> Iterator[None]:
        """From now on, and until it has ended, the generation may be stopped."""
        self._found.setdefault(generation_id, None)
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)
            # A repeat runs under its first id; one that somebody else has taken up goes on.
            over = [key for key, found in self._found.items() if found is not None and found[1].done.done()]
            for key in over:
                del self._found[key]
            if self._found.get(generation_id) is None:
                self._found.pop(generation_id, None)
            self._cancelled.discard(generation_id)

    def begun(self, session: Session, generation: Generation, asked_for: str) -> asyncio.Future[None]:
        """It has begun, or was told to its end; `asked_for` is the id it was expected under. Returns what tells its end."""
        if not generation.done.done():
            self._found[generation.id] = (session, generation)
            if generation.listener not in self._listeners:
                self.stop(session, generation, only_interrupt=True)
            elif asked_for in self._cancelled:
                self.stop(session, generation)
        self._engine.wake()
        return generation.done

    def cancel(self, generation_id: str) -> bool | None:
        """Whether there was something to cancel; None for an id that is not known here. One that still waits to begin ends as
        soon as it does."""
        if generation_id not in self._found:
            return None
        found = self._found[generation_id]
        if found is None:
            self._cancelled.add(generation_id)
            return True
        return self.stop(*found)

    def gone(self, listener: int) -> bool:
        """Nobody waits for the events of this request any more: break its generation off, now or when it begins."""
        known = listener in self._listeners
        self._listeners.discard(listener)
        for found in list(self._found.values()):
            if found is not None and found[1].listener == listener:
                self.stop(*found, only_interrupt=True)
        return known

    def stop(self, session: Session, generation: Generation, *, only_interrupt: bool = False) -> bool:
        """End it for good, or break it off; False if the session does not run it any more."""
        if session.generation is not generation:
            return False
        if only_interrupt:
            interrupt(session, generation)
        else:
            cancel(session, generation, self._journal, self._engine.moves.drop)
        if session.lease is None:
            self._engine.moves.release(session)
        self._engine.wake()
        return True

    def break_off(self, error: ServerError) -> None:
        """End every one of them with an error; those that are remembered may be taken up again elsewhere."""
        for found in list(self._found.values()):
            if found is None:
                continue
            session, generation = found
            if session.generation is generation and not generation.done.done():
                generation.done.set_exception(error)
                self.stop(session, generation, only_interrupt=True)

    @property
    def ends(self) -> list[asyncio.Future[None]]:
        """What tells the end of each that has begun."""
        return [found[1].done for found in self._found.values() if found is not None]
