"""Where a worker's requests are answered: append, generate, cancel, inspect, forget, drain."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import structlog

from server.errors import (
    Draining,
    InvalidRequest,
    NotFound,
    OperationMismatch,
    SessionBusy,
)
from server.messages import (
    Append,
    Appended,
    Cancel,
    Done,
    Drain,
    Forget,
    Generate,
    GenerationStarted,
    Inspect,
    Inspected,
)
from server.settings import Settings
from server.store.base import AlreadyApplied, JournalEntry, OperationRecord, Store
from server.worker.engine import Engine
from server.worker.generating import cancel
from server.worker.journal import Journal
from server.worker.runner import Runner
from server.worker.session import Emit, Generation, Session
from server.worker.text import Intake

Args = TypeVarTuple("Args")
T = TypeVar("T")
log = structlog.get_logger()


class Desk:
    """Turns requests into journal entries and work for the engine, and waits for what comes of them."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        runner: Runner,
        engine: Engine,
        store: Store,
        journal: Journal,
        reading: ThreadPoolExecutor,
    ) -> None:
        self._settings, self._owner, self._runner = settings, owner, runner
        self._engine, self._store, self._journal, self._reading = engine, store, journal, reading
        self._opening = asyncio.Lock()
        self._running: dict[str, Session | None] = {}
        """Generations by id; None for one that has not begun yet."""
        self._cancelled: set[str] = set()
        """Those that were cancelled before they began."""
        self._draining = False

    async def append(self, request: Append) -> Appended:
        """Journal first; then, unless the caller is content with that, wait until it is folded."""
        self._refuse_when_draining()
        session = await self._open(request.session_id)
        with self._using(session):
            await self._backlog(session)
            async with session.lock:
                answer = await self._append_locked(session, request)
            if request.wait == "memory":
                await session_reached(session, self._engine, session.journaled)
                answer = answer.model_copy(update={"status": "remembered"})
            return answer

    async def _append_locked(self, session: Session, request: Append) -> Appended:
        session.check()
        if request.op_id is not None:
            known = await self._store.operation(session.key, request.op_id)
            if known is not None:
                return self._repeated(session, request, known)
        if session.generation is not None:
            raise SessionBusy("the session is generating; append when it has finished, or cancel it")
        before = session.position
        if request.messages is not None:
            intake = await self._read(self._runner.reader.messages, session.standing, request.messages)
        else:
            intake = await self._read(self._runner.reader.text, session.standing, request.text or "")
        position = session.journaled + len(intake.tokens) + intake.open_tokens
        operation = None
        if request.op_id is not None:
            operation = OperationRecord(request.op_id, _digest(request), position - before, position)
        await self._commit(session, intake, operation)
        return self._appended(request, position - before, position, applied=True)

    def _repeated(self, session: Session, request: Append, known: OperationRecord) -> Appended:
        if known.request_digest != _digest(request):
            raise OperationMismatch(
                f"op_id {request.op_id!r} was used before with another body; use a new one", param="op_id"
            )
        return self._appended(request, known.tokens, known.position, applied=False)

    def _appended(self, request: Append, tokens: int, position: int, *, applied: bool) -> Appended:
        return Appended(
            op_id=request.op_id,
            tokens=tokens,
            position=position,
            status="journaled",
            applied=applied,
            state_bytes=self._runner.describe().state_bytes,
        )

    async def generate(self, request: Generate, emit: Emit) -> None:
        """Run a generation to its end. Events go to `emit`; errors are raised."""
        self._refuse_when_draining()
        self._running[request.generation_id] = None
        try:
            session = await self._open(request.session_id)
            with self._using(session):
                begin = self._begin if request.remember else self._begin_scratch
                self._running[request.generation_id], generation = await begin(session, request, emit)
                if request.generation_id in self._cancelled:
                    self._stop(request.generation_id)
                self._engine.wake()
                await generation.done
        finally:
            del self._running[request.generation_id]
            self._cancelled.discard(request.generation_id)

    async def _begin(self, session: Session, request: Generate, emit: Emit) -> tuple[Session, Generation]:
        async with session.lock:
            session.check()
            if session.generation is not None:
                raise SessionBusy("the session is already generating; wait until it has finished, or cancel it")
            intake = await self._prompt(session, request)
            if intake.tokens or intake.turn != session.turn:
                await self._commit(session, intake, None)
            generation = self._generation(request, len(intake.tokens), session.journaled, emit)
            session.generation = generation
            self._announce(generation)
        return session, generation

    async def _begin_scratch(self, parent: Session, request: Generate, emit: Emit) -> tuple[Session, Generation]:
        """A copy of the session's state, prompt pending, that is thrown away afterwards."""
        parent.held += 1  # else two that wait for one row would push each other out for ever
        try:
            return await self._copied(parent, request, emit)
        finally:
            parent.held -= 1
            self._engine.wake()

    async def _copied(self, parent: Session, request: Generate, emit: Emit) -> tuple[Session, Generation]:
        while True:
            if parent.generation is not None:
                raise SessionBusy("the session is generating; ask when it has finished, or cancel it")
            await session_reached(parent, self._engine, parent.journaled)
            intake = await self._prompt(parent, request)
            settled = parent.row is not None and parent.folded == parent.journaled and not parent.moving
            if not settled or parent.lock.locked():
                await asyncio.sleep(0.01)  # an append came in between: let it be read first
                continue
            position = parent.journaled
            scratch = Session(request.generation_id, None, journaled=position, folded=position, turn=intake.turn)
            scratch.pending.extend(intake.tokens)
            scratch.journaled += len(intake.tokens)
            generation = self._generation(request, len(intake.tokens), scratch.journaled, emit)
            generation.stays_at = parent.position
            scratch.generation = generation
            if await self._engine.take_over(parent, scratch):
                self._announce(generation)
                return scratch, generation

    async def _prompt(self, session: Session, request: Generate) -> Intake:
        intake = await self._read(self._runner.reader.prompt, session.standing, request.prompt, request.messages)
        if session.journaled + len(intake.tokens) == 0:
            raise InvalidRequest("there is nothing to go on from: append text first, or give a prompt")
        return intake

    def _generation(self, request: Generate, prompt_tokens: int, context_tokens: int, emit: Emit) -> Generation:
        return Generation(
            id=request.generation_id,
            voice=self._runner.voice(request.sampling),
            max_tokens=request.sampling.max_tokens,
            prompt_tokens=prompt_tokens,
            context_tokens=context_tokens,
            emit=emit,
            done=asyncio.get_running_loop().create_future(),
        )

    def _announce(self, generation: Generation) -> None:
        generation.emit(GenerationStarted(generation_id=generation.id, prompt_tokens=generation.prompt_tokens))

    async def cancel(self, request: Cancel) -> Done:
        """Stop a generation at once; the step under way is not waited for."""
        return Done(found=self._stop(request.generation_id))

    def _stop(self, generation_id: str) -> bool:
        """Whether there was something to stop. One that still waits to begin ends as soon as it does."""
        if generation_id not in self._running:
            return False
        session = self._running[generation_id]
        if session is None:
            self._cancelled.add(generation_id)
            return True
        generation = session.generation
        if generation is None or generation.id != generation_id:
            return False
        cancel(session, generation, self._engine.drop)
        if session.lease is None:
            self._engine.release(session)
        self._engine.wake()
        return True

    async def inspect(self, request: Inspect) -> Inspected:
        """What the memory holds now; tokens that are journaled and not folded yet are counted in `position` only."""
        session = await self._open(request.session_id)
        with self._using(session):
            while True:
                await session_reached(session, self._engine, 0)
                if session.row is not None:
                    report = await self._engine.compute(self._runner.inspect, session.row)
                    return report.model_copy(update={"position": session.position})

    async def forget(self, request: Forget) -> Done:
        """The session was deleted."""
        session = self._engine.sessions.get(request.session_id)
        if session is None:
            return Done(found=False)
        self._engine.drop(session, NotFound("the session was deleted"))
        return Done()

    async def drain(self, request: Drain) -> Done:
        """Refuse new work, let generations finish for a while, then write every session out."""
        self._draining = True
        running = [session.generation for session in self._running.values() if session is not None]
        if ends := [generation.done for generation in running if generation is not None]:
            await asyncio.wait(ends, timeout=request.seconds)
        for generation_id in list(self._running):
            self._stop(generation_id)
        await self._journal.settled()
        await self._engine.moved()
        for session in list(self._engine.sessions.values()):
            await self._engine.snapshot(session)
            # Appends that wait to be read are acknowledged no more; what they journaled is read after the start.
            self._engine.drop(session, Draining("the server is shutting down; ask again after its start"))
        return Done()

    async def write_behind(self) -> None:
        """Write snapshots while sessions live: after so many tokens, so many seconds, or when idle. Runs until cancelled."""
        settings = self._settings
        while True:
            await asyncio.sleep(min(0.5, settings.idle_seconds / 2))
            now = time.monotonic()
            for session in list(self._engine.sessions.values()):
                unsaved = session.folded - session.saved
                if unsaved <= 0 or session.row is None:
                    continue
                since = session.changed_since or now
                idle = not session.has_work and now - session.touched >= settings.idle_seconds
                if unsaved >= settings.snapshot_tokens or now - since >= settings.snapshot_seconds or idle:
                    await self._engine.snapshot(session)

    async def _open(self, session_id: str) -> Session:
        """The session's object here, taking its lease if this worker does not hold it."""
        async with self._opening:
            session = self._engine.sessions.get(session_id)
            if session is None:
                lease = await self._store.acquire(session_id, self._owner)
                record = await self._store.head(session_id)
                session = Session(
                    session_id,
                    lease,
                    journaled=record.journaled,
                    open_text=record.open_text,
                    open_tokens=record.open_tokens,
                    turn=record.turn,
                )
                self._engine.sessions[session_id] = session
            return session

    @contextmanager
    def _using(self, session: Session) -> Iterator[None]:
        session.users += 1
        try:
            yield
        finally:
            session.users -= 1

    async def _commit(self, session: Session, intake: Intake, operation: OperationRecord | None) -> None:
        """Make an intake durable, then let the engine have it. The session's lock is held."""
        assert session.lease is not None
        entry = JournalEntry(
            lease=session.lease,
            start=session.journaled,
            tokens=intake.tokens,
            open_text=intake.open_text,
            open_tokens=intake.open_tokens,
            turn=intake.turn,
            operation=operation,
        )
        try:
            await self._journal.add(entry)
        except AlreadyApplied:
            raise SessionBusy("the same operation is being applied right now; ask again") from None
        except Exception as error:
            self._engine.drop(session, error)
            raise
        session.open_text, session.open_tokens, session.turn = intake.open_text, intake.open_tokens, intake.turn
        session.take(intake.tokens)
        session.touched = time.monotonic()
        session.changed_since = session.changed_since or session.touched
        self._engine.wake()

    async def _backlog(self, session: Session) -> None:
        """Backpressure: wait while too much is journaled and not yet folded."""
        surplus = session.journaled - self._settings.backlog_tokens
        if surplus > session.folded:
            await session_reached(session, self._engine, surplus)

    async def _read(self, read: Callable[[*Args], T], *args: *Args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, read, *args)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining("the server is shutting down; send this again to the one that replaces it")


async def session_reached(session: Session, engine: Engine, target: int) -> None:
    """Wait until the session is resident and `target` tokens are folded."""
    future = session.reached(target)
    engine.wake()
    await future


def _digest(request: Append) -> str:
    body = request.model_dump_json(include={"text", "messages"})
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
