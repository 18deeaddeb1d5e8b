"""Where a worker's generations begin, break off, and are taken up again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgpack

from server.errors import InvalidRequest, NotFound, OperationMismatch, SessionBusy, StaleLease
from server.messages import Cancel, Done, Generate, GenerationStarted, Resume, SamplingParams
from server.pairs import Pair
from server.store.base import Finish, GenerationRecord, JournalEntry, OperationRecord, Store
from server.worker.engine import Engine
from server.worker.generating import numbered_after, take_up, told_again
from server.worker.holding import Holdings
from server.worker.intake import Intakes, session_reached
from server.worker.journal import Journal
from server.worker.runners import Runners
from server.worker.running import Running
from server.worker.session import Emit, Generation, Session
from server.worker.text import Intake

T = TypeVar("T")
_ATTEMPTS = 4


async def despite_hand_over(work: Callable[[], Awaitable[T]]) -> T:
    """Do it again when another server took the session in between: a refused write has changed nothing."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await work()
        except StaleLease:
            continue
    return await work()


class Generations:
    """Begins generations and goes on with those that broke off; `running` has the ones under way."""

    def __init__(
        self, runners: Runners, engine: Engine, store: Store, journal: Journal, holdings: Holdings, intakes: Intakes
    ) -> None:
        self._runners, self._engine, self._store, self._journal = runners, engine, store, journal
        self._holdings, self._intakes = holdings, intakes
        self.running = Running(engine, journal)

    async def generate(self, request: Generate, emit: Emit, listener: int) -> None:
        """Run a generation to its end. Events go to `emit`, which answers the request `listener`; errors are raised."""
        with self.running.expected(request.generation_id, listener):
            done = await despite_hand_over(lambda: self._start(request, emit, listener))
            await done

    async def resume(self, request: Resume, emit: Emit, listener: int) -> None:
        """Tell a generation again, and run it to its end."""
        with self.running.expected(request.generation_id, listener):
            done = await despite_hand_over(lambda: self._start_again(request, emit, listener))
            await done

    async def _start(self, request: Generate, emit: Emit, listener: int) -> asyncio.Future[None]:
        session = await self._holdings.open(request.session_id)
        with session.used():
            begin = self._begin if request.remember else self._begin_scratch
            session, generation = await begin(session, request, emit, listener)
            return self.running.begun(session, generation, request.generation_id)

    async def _start_again(self, request: Resume, emit: Emit, listener: int) -> asyncio.Future[None]:
        session = await self._holdings.open(request.session_id)
        with session.used():
            async with session.lock:
                session.check()
                generation = await self._taken_up(session, request.generation_id, request.after, emit, listener)
            return self.running.begun(session, generation, request.generation_id)

    async def _begin(
        self, session: Session, request: Generate, emit: Emit, listener: int
    ) -> tuple[Session, Generation]:
        async with session.lock:
            session.check()
            if (known := await self._known(session, request)) is not None:
                return session, await self._taken_up(session, known, -1, emit, listener)
            if session.generation is not None:
                raise SessionBusy("the session is already generating; wait until it has finished, or cancel it")
            intake = await self._prompt(session, request)
            context = session.journaled + len(intake.tokens)
            record = GenerationRecord(
                id=request.generation_id,
                session_id=session.key,
                request=_pack(request.sampling),
                start=context,
                prompt_tokens=len(intake.tokens),
            )
            operation = _operation(request, len(intake.tokens), context)
            await self._intakes.commit(session, intake, operation, if_match=request.if_match, begins=record)
            generation = self._generation(session.pair, request.sampling, record, emit, listener)
            session.generation = generation
            generation.tell(GenerationStarted(generation_id=record.id, prompt_tokens=record.prompt_tokens))
        return session, generation

    async def _known(self, session: Session, request: Generate) -> str | None:
        """The generation that this request began when it was sent first."""
        if request.op_id is None:
            return None
        known = await self._store.operation(session.key, request.op_id)
        if known is None:
            return None
        if known.request_digest != _digest(request) or known.generation_id is None:
            raise OperationMismatch(
                f"op_id {request.op_id!r} was used before with another request; use a new one", param="op_id"
            )
        return known.generation_id

    async def _taken_up(
        self, session: Session, generation_id: str, after: int, emit: Emit, listener: int
    ) -> Generation:
        """A generation told again from behind event number `after`. The session's lock is held."""
        running = session.generation
        if running is not None and running.id == generation_id:
            take_up(running, after, emit, listener)
            return running
        record = await self._store.generation(generation_id)
        if record is None or record.session_id != session.key:
            raise NotFound("there is no such generation in this session, or it is too old to be taken up again")
        if record.finish is None and running is not None:
            raise SessionBusy("another generation runs in the session; ask when it has finished, or cancel it")
        at_rest = session.journaled == record.start + len(record.tokens) and not session.open_text
        if record.finish is None and not at_rest:
            record = await self._given_up(session, record)
        generation = self._generation(session.pair, _unpack(record.request), record, emit, listener)
        told_again(generation, record)
        if record.finish is None:
            session.generation = generation
        else:
            generation.done.set_result(None)
        rest = numbered_after(generation.told, after)
        if record.finish is not None:
            rest = rest or generation.told[-1:]  # whoever asks for what comes behind the end has not understood it
        for event in rest:
            emit(event)
        return generation

    async def _given_up(self, session: Session, record: GenerationRecord) -> GenerationRecord:
        """The record of one that broke off and is not to go on: cancelled, or the session took in something else behind it."""
        assert session.lease is not None
        finish = Finish("cancelled", len(record.tokens), record.start + len(record.tokens))
        entry = self._silent(session, sampled_by=record.id, finish=finish)
        await self._journal.add(entry)
        return replace(record, finish=finish)

    def _silent(
        self,
        session: Session,
        *,
        operation: OperationRecord | None = None,
        begins: GenerationRecord | None = None,
        sampled_by: str | None = None,
        finish: Finish | None = None,
    ) -> JournalEntry:
        assert session.lease is not None
        return JournalEntry(
            session.lease,
            session.journaled,
            (),
            session.open_text,
            session.open_tokens,
            session.turn,
            operation=operation,
            begins=begins,
            sampled_by=sampled_by,
            finish=finish,
            silent=True,
        )

    async def _begin_scratch(
        self, parent: Session, request: Generate, emit: Emit, listener: int
    ) -> tuple[Session, Generation]:
        """A copy of the session's state, prompt pending, that is thrown away afterwards."""
        known = await self._known(parent, request)
        if known is not None:
            async with parent.lock:
                return parent, await self._taken_up(parent, known, -1, emit, listener)
        parent.held += 1  # else two that wait for one row would push each other out for ever
        try:
            return await self._copied(parent, request, emit, listener)
        finally:
            parent.held -= 1
            self._engine.wake()

    async def _copied(
        self, parent: Session, request: Generate, emit: Emit, listener: int
    ) -> tuple[Session, Generation]:
        while True:
            if parent.generation is not None:
                raise SessionBusy("the session is generating; ask when it has finished, or cancel it")
            await session_reached(parent, self._engine, parent.journaled)
            await self._intakes.check_match(parent, request.if_match)
            intake = await self._prompt(parent, request)
            settled = parent.row is not None and parent.folded == parent.journaled and not parent.moving
            if not settled or parent.lock.locked():
                await asyncio.sleep(0.01)  # an append came in between: let it be read first
                continue
            scratch, generation = self._scratch(parent, request, intake, emit, listener)
            if await self._engine.moves.take_over(parent, scratch):
                generation.tell(GenerationStarted(generation_id=generation.id, prompt_tokens=generation.prompt_tokens))
                return scratch, generation

    def _scratch(
        self, parent: Session, request: Generate, intake: Intake, emit: Emit, listener: int
    ) -> tuple[Session, Generation]:
        position = parent.journaled
        scratch = Session(
            request.generation_id,
            parent.tenant,
            parent.pair,
            None,
            journaled=position,
            folded=position,
            turn=intake.turn,
        )
        scratch.pending.extend(intake.tokens)
        scratch.journaled += len(intake.tokens)
        record = GenerationRecord(
            id=request.generation_id,
            session_id=parent.key,
            request=_pack(request.sampling),
            start=scratch.journaled,
            prompt_tokens=len(intake.tokens),
        )
        generation = self._generation(parent.pair, request.sampling, record, emit, listener)
        generation.stays_at = parent.position
        operation = _operation(request, len(intake.tokens), parent.position)
        if operation is not None:

            def keep(tokens: Sequence[int], finish: Finish) -> JournalEntry:
                whole = replace(record, tokens=tuple(tokens), finish=finish)
                return self._silent(parent, operation=operation, begins=whole)

            generation.record = keep
        scratch.generation = generation
        return scratch, generation

    async def _prompt(self, session: Session, request: Generate) -> Intake:
        read = self._runners[session.pair].reader.prompt
        intake = await self._intakes.read(read, session.standing, request.prompt, request.messages)
        if session.journaled + len(intake.tokens) == 0:
            raise InvalidRequest("there is nothing to go on from: append text first, or give a prompt")
        return intake

    def _generation(
        self, pair: Pair, sampling: SamplingParams, record: GenerationRecord, emit: Emit, listener: int
    ) -> Generation:
        return Generation(
            id=record.id,
            voice=self._runners[pair].voice(sampling),
            max_tokens=sampling.max_tokens,
            prompt_tokens=record.prompt_tokens,
            context_tokens=record.start,
            emit=emit,
            listener=listener,
            done=asyncio.get_running_loop().create_future(),
        )

    async def cancel(self, request: Cancel) -> Done:
        """Stop a generation at once; the step under way is not waited for. One that broke off is ended for good."""
        if request.listener is not None:
            return Done(found=self.running.gone(request.listener))
        found = self.running.cancel(request.generation_id)
        return Done(found=await despite_hand_over(lambda: self._cancel_broken_off(request)) if found is None else found)

    async def _cancel_broken_off(self, request: Cancel) -> bool:
        record = await self._store.generation(request.generation_id)
        if record is None or record.finish is not None:
            return False
        session = await self._holdings.open(record.session_id)
        with session.used():
            async with session.lock:
                session.check()
                if session.generation is not None and session.generation.id == record.id:
                    return self.running.stop(session, session.generation)
                record = await self._store.generation(request.generation_id)
                if record is None or record.finish is not None:
                    return False
                await self._given_up(session, record)
        return True


def _operation(request: Generate, tokens: int, position: int) -> OperationRecord | None:
    if request.op_id is None:
        return None
    return OperationRecord(request.op_id, _digest(request), tokens, position, request.generation_id)


def _digest(request: Generate) -> str:
    body = request.model_dump_json(include={"prompt", "messages", "sampling", "remember"})
    return hashlib.sha256(b"generate" + body.encode("utf-8", "surrogatepass")).hexdigest()


def _pack(sampling: SamplingParams) -> bytes:
    return msgpack.packb(sampling.model_dump())  # type: ignore[no-any-return]


def _unpack(packed: bytes) -> SamplingParams:
    return SamplingParams.model_validate(msgpack.unpackb(packed))
