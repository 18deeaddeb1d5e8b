"""What the server does, free of HTTP: sessions, appends and generations of tenants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import structlog

from server.errors import (
    Draining,
    Internal,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    ServerError,
    Unavailable,
)
from server.ids import is_id, new_id
from server.messages import (
    Answer,
    Append,
    Appended,
    Cancel,
    ChatMessage,
    Done,
    Forget,
    Generate,
    GenerationEvent,
    Inspect,
    Inspected,
    Ready,
    SamplingParams,
)
from server.pieces import pieces
from server.pool.base import Pool
from server.settings import Settings
from server.store.base import Page, SessionRecord, Store

Wait = Literal["memory", "journal"]
Expected = TypeVar("Expected", bound=Answer)


@dataclass(frozen=True)
class Running:
    """Whose a running generation is."""

    tenant: str
    session_id: str


@dataclass(frozen=True)
class Taken:
    """How much of a streamed text has been acknowledged."""

    size: int = 0
    """Bytes of UTF-8."""
    tokens: int = 0
    position: int = 0


class Service:
    """One for an app. Every method checks that the session is the tenant's: if not, `NotFound`."""

    def __init__(self, settings: Settings, pool: Pool, store: Store) -> None:
        self.settings = settings
        self.pool = pool
        self.store = store
        self.started_at = time.time()
        self.draining = asyncio.Event()
        self._deadline = 0.0
        self._running: dict[str, Running] = {}
        self._at_work = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger("server.service")

    def served(self) -> Ready:
        """What the workers serve. Raises `Unavailable` until one has loaded it."""
        ready = self.pool.describe()
        if ready is None:
            raise Unavailable("the model is still loading; try again shortly", retry_after=2.0)
        return ready

    async def check_ready(self) -> None:
        """Raise what keeps this server from taking requests."""
        if self.draining.is_set():
            raise Draining("the server is shutting down")
        if not self.pool.ready:
            raise Unavailable("not every worker has loaded the model yet", retry_after=2.0)
        await self.store.ping()

    def begin_drain(self) -> None:
        """Refuse new appends and generations from here on. Does nothing the second time."""
        if not self.draining.is_set():
            self._deadline = time.monotonic() + self.settings.drain_seconds
            self.draining.set()

    @property
    def drain_remaining(self) -> float:
        """Seconds that running generations may still take."""
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def at_work(self) -> Generator[None, None, None]:
        """What must not be cut off by a drain that still has time: a generation, an append, a socket."""
        self._at_work += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._idle.set()

    async def cancel_running(self) -> None:
        """Stop every generation, so that its client learns how it ended."""
        for generation_id, running in list(self._running.items()):
            with suppress(ServerError):
                await self.pool.call(Cancel(session_id=running.session_id, generation_id=generation_id))

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is `at_work`; False when `seconds` passed first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def create_session(
        self,
        tenant: str,
        *,
        model: str | None = None,
        memory: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
    ) -> SessionRecord:
        """Add a session; `system` becomes its first message."""
        self._refuse_if_draining()
        served = self.served()
        for name, wanted, given in (("model", model, served.model), ("memory", memory, served.memory)):
            if wanted is not None and wanted != given:
                raise InvalidRequest(f"this server's {name} is {given}; leave {name} out or name that", param=name)
        now = time.time()
        record = SessionRecord(
            id=new_id("sess"),
            tenant=tenant,
            model=served.model,
            memory=served.memory,
            created_at=now,
            updated_at=now,
            metadata=dict(metadata or {}),
            ttl_seconds=ttl_seconds,
            expires_at=None if ttl_seconds is None else now + ttl_seconds,
        )
        record = await self.store.create(record)
        return record if system is None else await self._with_system(record, system)

    async def _with_system(self, record: SessionRecord, system: str) -> SessionRecord:
        message = ChatMessage(role="system", content=system)
        try:
            await self._append(Append(session_id=record.id, messages=(message,), wait="journal"))
        except BaseException:
            # Nobody has seen its id yet: half a session would stay behind unnoticed.
            await self.store.delete(record.tenant, record.id)
            raise
        return await self.store.get(record.tenant, record.id)

    async def get_session(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record."""
        if not is_id("sess", session_id):
            raise NotFound("there is no such session", param="session_id")
        return await self.store.get(tenant, session_id)

    async def enter(self, tenant: str, session_id: str) -> SessionRecord:
        """The record of a session that is about to be worked with. Raises if no work can be taken."""
        self._refuse_if_draining()
        self.served()
        return await self.get_session(tenant, session_id)

    async def list_sessions(self, tenant: str, *, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """One page of the tenant's sessions."""
        if after is not None and not is_id("sess", after):
            raise InvalidRequest("after must be a session's id, such as last_id of the page before", param="after")
        return await self.store.list(tenant, limit=limit, after=after, order=order)

    async def update_session(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None,
        ttl_seconds: int | Literal["keep"] | None,
        if_versions: frozenset[int] | None = None,
    ) -> SessionRecord:
        """Change a record, if its version is one of `if_versions`."""
        record = await self.get_session(tenant, session_id)
        if if_versions is not None and record.version not in if_versions:
            raise PreconditionFailed("the session has changed since; get it again and use its new ETag")
        version = None if if_versions is None else record.version
        return await self.store.update(
            tenant, session_id, metadata=metadata, ttl_seconds=ttl_seconds, if_version=version
        )

    async def delete_session(self, tenant: str, session_id: str) -> None:
        """Remove a session and all that was stored of it."""
        await self.get_session(tenant, session_id)
        await self.store.delete(tenant, session_id)
        try:
            await self.pool.call(Forget(session_id=session_id))
        except ServerError as error:
            # What is stored is gone. A worker that still holds it cannot write it back: its lease is void.
            self._log.info("worker not told of a deleted session", session_id=session_id, code=error.code)

    async def append(
        self,
        tenant: str,
        session_id: str,
        *,
        text: str | None,
        messages: tuple[ChatMessage, ...] | None,
        op_id: str,
        wait: Wait,
    ) -> Appended:
        """Take text or messages in."""
        await self.enter(tenant, session_id)
        return await self._append(Append(session_id=session_id, text=text, messages=messages, op_id=op_id, wait=wait))

    async def append_stream(
        self, tenant: str, session_id: str, chunks: AsyncIterator[bytes], *, op_id: str, wait: Wait
    ) -> Appended:
        """Take in UTF-8 text of any length; `chunks` is read only as fast as the pieces of it are journaled.

        Pieces have operation ids `op_id/0`, `op_id/1`, …, so that the same stream sent again goes on where it
        broke off. Errors say how much was kept.
        """
        await self.enter(tenant, session_id)
        taken, answer = Taken(), None
        try:
            async with aclosing(pieces(chunks)) as cut:
                async for piece in cut:
                    self._refuse_if_draining()
                    name = f"{op_id}/{piece.index}"
                    answer = await self._append(
                        Append(
                            session_id=session_id,
                            text=piece.text,
                            op_id=name,
                            wait=wait if piece.last else "journal",
                        )
                    )
                    size = taken.size + len(piece.text.encode())
                    taken = Taken(size, taken.tokens + answer.tokens, answer.position)
        except ServerError as error:
            raise _with_account(error, taken) from None
        finally:
            self._log.info("text taken in", session_id=session_id, bytes=taken.size, tokens=taken.tokens)
        if answer is None:
            raise InvalidRequest("the body is empty: there is no text to append")
        return answer.model_copy(update={"tokens": taken.tokens, "op_id": op_id})

    async def _append(self, request: Append) -> Appended:
        with self.at_work():
            return _expect(Appended, await self.pool.call(request))

    async def generate(
        self,
        tenant: str,
        session_id: str,
        *,
        prompt: str | None,
        messages: tuple[ChatMessage, ...] | None,
        sampling: SamplingParams,
        remember: bool,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a generation. Closing the generator cancels it."""
        limit = self.settings.max_tokens_limit
        if sampling.max_tokens > limit:
            raise InvalidRequest(f"max_tokens must be at most {limit}", param="max_tokens")
        await self.enter(tenant, session_id)
        request = Generate(
            session_id=session_id,
            generation_id=new_id("gen"),
            prompt=prompt,
            messages=messages,
            sampling=sampling,
            remember=remember,
        )
        self._running[request.generation_id] = Running(tenant, session_id)
        try:
            # The one place where a generation is cancelled: leaving this block early.
            with self.at_work():
                async with aclosing(self.pool.stream(request)) as events:
                    async for event in events:
                        yield event
        finally:
            del self._running[request.generation_id]

    async def cancel(self, tenant: str, generation_id: str) -> None:
        """Stop a running generation within one step; what was sampled stays if it is remembered."""
        running = self._running.get(generation_id)
        if running is None or running.tenant != tenant:
            raise NotFound("no generation with this id is running", param="generation_id")
        answer = await self.pool.call(Cancel(session_id=running.session_id, generation_id=generation_id))
        if not _expect(Done, answer).found:
            raise NotFound("no generation with this id is running", param="generation_id")

    async def inspect(self, tenant: str, session_id: str) -> Inspected:
        """What a session's memory holds."""
        self.served()
        await self.get_session(tenant, session_id)
        return _expect(Inspected, await self.pool.call(Inspect(session_id=session_id)))

    def _refuse_if_draining(self) -> None:
        if self.draining.is_set():
            raise Draining("the server is shutting down; send this to the one that replaces it")


def _expect(kind: type[Expected], answer: Answer) -> Expected:
    if not isinstance(answer, kind):
        raise Internal(f"a worker answered with {answer.kind} where {kind.__name__} was due")
    return answer


def _with_account(error: ServerError, taken: Taken) -> ServerError:
    """The error, saying also what of the stream is kept."""
    kept = f"{taken.size} bytes ({taken.tokens} tokens, position {taken.position}) were taken in and are kept"
    if not taken.size:
        kept = "nothing of the body was taken in"
    return type(error)(f"{error.message}; {kept}", param=error.param, code=error.code, retry_after=error.retry_after)
