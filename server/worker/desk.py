"""Where a worker's requests are answered, but for generations: append, inspect, check, forget, drain."""

from __future__ import annotations

import asyncio
import hashlib
import time

from server.errors import Draining, NotFound, OperationMismatch, SessionBusy
from server.messages import (
    Append,
    Appended,
    Cancel,
    Check,
    Done,
    Drain,
    Forget,
    Generate,
    Inspect,
    Inspected,
    Resume,
)
from server.pairs import Pair
from server.settings import Settings
from server.store.base import OperationRecord, Store
from server.worker.engine import Engine
from server.worker.generations import Generations, despite_hand_over
from server.worker.holding import Holdings
from server.worker.intake import Intakes, session_reached
from server.worker.journal import Journal
from server.worker.runners import Runners
from server.worker.session import Emit, Session


class Desk:
    """Turns requests into journal entries and work for the engine, and waits for what comes of them."""

    def __init__(
        self,
        settings: Settings,
        runners: Runners,
        engine: Engine,
        store: Store,
        journal: Journal,
        holdings: Holdings,
        intakes: Intakes,
    ) -> None:
        self._settings, self._runners = settings, runners
        self._engine, self._store, self._journal = engine, store, journal
        self._holdings, self._intakes = holdings, intakes
        self._generations = Generations(runners, engine, store, journal, holdings, intakes)
        self._draining = False

    async def append(self, request: Append) -> Appended:
        """Journal first; then, unless the caller is content with that, wait until it is folded."""
        self._refuse_when_draining()
        answer, target = await despite_hand_over(lambda: self._append(request))
        if request.wait == "memory":
            await despite_hand_over(lambda: self._reach(request.session_id, target))
            answer = answer.model_copy(update={"status": "remembered"})
        return answer

    async def _append(self, request: Append) -> tuple[Appended, int]:
        """The answer, and how much must be folded for the memory to have it."""
        session = await self._holdings.open(request.session_id)
        with session.used():
            await self._intakes.backlog(session)
            async with session.lock:
                return await self._append_locked(session, request), session.journaled

    async def _append_locked(self, session: Session, request: Append) -> Appended:
        session.check()
        if request.op_id is not None:
            known = await self._store.operation(session.key, request.op_id)
            if known is not None:
                return self._repeated(session, request, known)
        if session.generation is not None:
            raise SessionBusy("the session is generating; append when it has finished, or cancel it")
        before, reader = session.position, self._runners[session.pair].reader
        if request.messages is not None:
            intake = await self._intakes.read(reader.messages, session.standing, request.messages)
        else:
            intake = await self._intakes.read(reader.text, session.standing, request.text or "")
        position = session.journaled + len(intake.tokens) + intake.open_tokens
        operation = None
        if request.op_id is not None:
            operation = OperationRecord(request.op_id, _digest(request), position - before, position)
        etag = await self._intakes.commit(session, intake, operation, if_match=request.if_match)
        answer = self._appended(session, request, position - before, position)
        return answer.model_copy(update={"etag": etag})

    def _repeated(self, session: Session, request: Append, known: OperationRecord) -> Appended:
        if known.request_digest != _digest(request):
            raise OperationMismatch(
                f"op_id {request.op_id!r} was used before with another request; use a new one", param="op_id"
            )
        answer = self._appended(session, request, known.tokens, known.position)
        return answer.model_copy(update={"etag": known.etag, "applied": False})

    def _appended(self, session: Session, request: Append, tokens: int, position: int) -> Appended:
        return Appended(
            op_id=request.op_id,
            tokens=tokens,
            position=position,
            status="journaled",
            applied=True,
            state_bytes=self._runners[session.pair].offered.state_bytes,
        )

    async def _reach(self, session_id: str, target: int) -> Session:
        """The session, once `target` of its tokens are folded here."""
        session = await self._holdings.open(session_id)
        with session.used():
            await session_reached(session, self._engine, target)
        return session

    async def generate(self, request: Generate, emit: Emit, listener: int) -> None:
        """Run a generation to its end. Events go to `emit`; errors are raised."""
        self._refuse_when_draining()
        await self._generations.generate(request, emit, listener)

    async def resume(self, request: Resume, emit: Emit, listener: int) -> None:
        """Tell a generation again, and run it to its end."""
        self._refuse_when_draining()
        await self._generations.resume(request, emit, listener)

    async def cancel(self, request: Cancel) -> Done:
        """Stop a generation, or break it off; the step under way is not waited for."""
        return await self._generations.cancel(request)

    async def inspect(self, request: Inspect) -> Inspected:
        """What the memory holds now; tokens that are journaled and not folded yet are counted in `position` only."""
        while True:
            session = await despite_hand_over(lambda: self._reach(request.session_id, 0))
            if session.row is not None:
                report = await self._engine.moves.compute(self._runners[session.pair].inspect, session.row)
                return report.model_copy(update={"position": session.position})

    async def check(self, request: Check) -> Done:
        """Whether a state from outside may be loaded."""
        pair = Pair(request.model, request.memory)
        if pair not in self._runners:
            raise self._runners.not_served(pair)
        await self._engine.moves.compute(self._runners[pair].check, request.position, request.state, request.tail)
        return Done()

    async def forget(self, request: Forget) -> Done:
        """The session was deleted."""
        session = self._engine.sessions.get(request.session_id)
        if session is None:
            return Done(found=False)
        self._engine.moves.drop(session, NotFound("the session was deleted"))
        return Done()

    async def drain(self, request: Drain) -> Done:
        """Refuse new work, let generations finish for a while, then write every session out and let others have it."""
        self._draining = True
        if ends := self._generations.running.ends:
            await asyncio.wait(ends, timeout=request.seconds)
        self._generations.running.break_off(
            Draining("the server is shutting down; take the stream up at the one that replaces it")
        )
        await self._journal.settled()
        await self._engine.moves.settled()
        for session in list(self._engine.sessions.values()):
            # Appends that wait to be read are acknowledged no more; what they journaled is read after the start.
            await self._engine.moves.let_go(session, Draining("the server is shutting down; ask again after its start"))
        return Done()

    async def write_behind(self) -> None:
        """Write snapshots while sessions live: after so many tokens, so many seconds, or when idle. Runs until cancelled."""
        settings = self._settings
        while True:
            await asyncio.sleep(min(0.5, settings.idle_seconds / 2))
            now = time.monotonic()
            for session in list(self._engine.sessions.values()):
                unsaved = session.folded - session.saved
                if unsaved <= 0 or session.row is None or now < session.save_again_at:
                    continue
                since = session.changed_since or now
                idle = not session.has_work and now - session.touched >= settings.idle_seconds
                if unsaved >= settings.snapshot_tokens or now - since >= settings.snapshot_seconds or idle:
                    await self._engine.moves.snapshot(session)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining("the server is shutting down; send this again to the one that replaces it")


def _digest(request: Append) -> str:
    body = request.model_dump_json(include={"text", "messages"})
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
