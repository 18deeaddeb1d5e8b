"""What the server does, free of HTTP: sessions, appends and generations of tenants."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

import structlog

from server.admission import Admission
from server.appends import Appends, Tags, Wait
from server.catalog import chosen, offer_of
from server.claims import Claims
from server.errors import (
    Internal,
    InvalidRequest,
    NotFound,
    ServerError,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from server.generations import Events, Generations, no_generation
from server.ids import is_id, new_id
from server.messages import (
    Answer,
    Append,
    Appended,
    ChatMessage,
    Forget,
    Generate,
    Inspect,
    Inspected,
    Offered,
    Ready,
    Resume,
    SamplingParams,
)
from server.metrics import ServiceMetrics
from server.pool.base import Pool
from server.settings import Settings
from server.store.base import Durability, Page, SessionRecord, Store
from server.transfers import Exported, Transfers
from server.workload import Workload

Lifetime = int | Literal["keep"] | None
Expected = TypeVar("Expected", bound=Answer)

_SYSTEM = "system message"
"""Operation id of a session's first message: not one that a client can send, for it has a space."""
_MEASURE_SECONDS = 2.0
"""How long workers may take to give their figures."""


class Resumed(NamedTuple):
    """A generation that is told again. Closing `events` interrupts it."""

    session_id: str
    events: Events


class Service(Workload):
    """One for an app. Every method checks that the session is the tenant's: if not, `NotFound`."""

    def __init__(self, settings: Settings, pool: Pool, store: Store) -> None:
        super().__init__(settings.drain_seconds)
        self.settings = settings
        self.pool = pool
        self.metrics = ServiceMetrics(len(settings.device))
        self.store = store = self.metrics.store_errors.counted(store)
        self.started_at = time.time()
        self._claims = Claims(store)
        self._admission = Admission(self._places, settings.max_requests_per_tenant)
        self._appends = Appends(pool, self)
        self._generations = Generations(pool, store, self, self._admission)
        self.metrics.gauge("requests_under_way", "Appends and generations, those that wait included.", self._under_way)
        self._transfers = Transfers(settings, pool, store, self._claims)
        self._log = structlog.get_logger("server.service")

    def served(self) -> Ready:
        """What the workers serve. Raises `Unavailable` until one has loaded it."""
        ready = self.pool.describe()
        if ready is None:
            raise Unavailable("the model is still loading; try again shortly", retry_after=2.0)
        return ready

    async def check_ready(self) -> None:
        """Raise what keeps this server from taking requests."""
        self.refuse_if_draining()
        if not self.pool.ready:
            raise Unavailable("not every worker has loaded the model yet", retry_after=2.0)
        await self.store.ping()

    def durability(self) -> Durability | None:
        """What acknowledged tokens survive; None while the store has not been reached."""
        try:
            return self.store.durability
        except StoreUnavailable:
            return None

    async def measure(self, accept: str) -> tuple[bytes, str]:
        """Figures of this process and of the workers for Prometheus, and their content type."""
        return self.metrics.page(await self.pool.measure(_MEASURE_SECONDS), accept)

    def _places(self) -> int:
        """Requests that compute or wait, at most."""
        ready = self.pool.describe()
        resident = 0 if ready is None else ready.places * len(self.settings.device)
        return resident + self.settings.max_waiting

    def _under_way(self) -> int:
        return self._admission.taken

    async def create_session(
        self,
        tenant: str,
        *,
        model: str | None = None,
        memory: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        op_id: str | None = None,
    ) -> SessionRecord:
        """Add a session; `system` becomes its first message. An `op_id` seen before gives the first answer again."""
        self.refuse_if_draining()
        offer = chosen(self.served(), model, memory)

        async def make(session_id: str) -> SessionRecord:
            now = time.time()
            record = await self.store.create(
                SessionRecord(
                    id=session_id,
                    tenant=tenant,
                    model=offer.model,
                    memory=offer.memory,
                    created_at=now,
                    updated_at=now,
                    metadata=dict(metadata or {}),
                    ttl_seconds=ttl_seconds,
                    expires_at=None if ttl_seconds is None else now + ttl_seconds,
                )
            )
            return record if system is None else await self._with_system(record, system, op_id)

        request = {"model": model, "memory": memory, "system": system, "metadata": metadata, "ttl_seconds": ttl_seconds}
        return await self._claims.once(tenant, "create", op_id, request, make)

    async def _with_system(self, record: SessionRecord, system: str, op_id: str | None) -> SessionRecord:
        message = ChatMessage(role="system", content=system)
        try:
            await self._appends.append(Append(session_id=record.id, messages=(message,), op_id=_SYSTEM, wait="journal"))
        except BaseException as error:
            # Nobody has seen its id yet: half a session would stay behind unnoticed. With an operation id, a repeat finishes
            # what only failed for a while, maybe after all has taken place; it would miss what was deleted here.
            if op_id is None or isinstance(error, InvalidRequest | TooLarge):
                with suppress(ServerError):
                    await self.delete_session(record.tenant, record.id)
            raise
        return await self.store.get(record.tenant, record.id)

    async def get_session(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record."""
        return await self.store.get(tenant, _session_id(session_id))

    async def enter(self, tenant: str, session_id: str) -> SessionRecord:
        """The record of a session that is about to be worked with. Raises if no work can be taken, or not for this session."""
        self.refuse_if_draining()
        return (await self._offered(tenant, session_id))[0]

    async def _offered(self, tenant: str, session_id: str) -> tuple[SessionRecord, Offered]:
        """A session and the pair it is of. Raises `ModelNotServed` before anything was asked of a worker: one that serves the
        session may hold it, and is not to be disturbed."""
        served = self.served()
        record = await self.get_session(tenant, session_id)
        return record, offer_of(served, record)

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
        ttl_seconds: Lifetime,
        if_match: Tags = None,
    ) -> SessionRecord:
        """Change a record, if its ETag is one of `if_match`."""
        return await self.store.update(
            tenant, _session_id(session_id), metadata=metadata, ttl_seconds=ttl_seconds, if_match=if_match
        )

    async def delete_session(self, tenant: str, session_id: str, *, if_match: Tags = None) -> None:
        """Remove a session and all that was stored of it."""
        await self.store.delete(tenant, _session_id(session_id), if_match=if_match)
        try:
            await self.pool.call(Forget(session_id=session_id))
        except ServerError as error:
            # What is stored is gone. A worker that still holds it cannot write it back: its lease is void.
            self._log.info("worker not told of a deleted session", session_id=session_id, code=error.code)

    async def fork_session(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: Lifetime = "keep",
        if_match: Tags = None,
        op_id: str | None = None,
    ) -> SessionRecord:
        """A new session that goes on from what is journaled of this one. `None` and `"keep"` copy the parent's."""
        self.refuse_if_draining()
        _session_id(session_id)

        async def make(child_id: str) -> SessionRecord:
            if op_id is not None:
                # It may be there from a try before, and the parent gone or changed since.
                with suppress(NotFound):
                    return await self.store.get(tenant, child_id)
            parent = await self.store.get(tenant, session_id)
            if (served := self.pool.describe()) is not None:  # no worker is needed, so none is waited for
                offer_of(served, parent)
            now = time.time()
            lifetime = parent.ttl_seconds if ttl_seconds == "keep" else ttl_seconds
            child = replace(
                parent,
                id=child_id,
                created_at=now,
                updated_at=now,
                metadata=parent.metadata if metadata is None else dict(metadata),
                ttl_seconds=lifetime,
                expires_at=None if lifetime is None else now + lifetime,
            )
            return await self.store.fork(tenant, session_id, child, if_match=if_match)

        request = {"parent": session_id, "metadata": metadata, "ttl_seconds": ttl_seconds}
        return await self._claims.once(tenant, "fork", op_id, request, make)

    def file_room(self) -> AbstractContextManager[None]:
        """For as long as a whole file is held in memory. Raises `Overloaded` when too many are."""
        return self._transfers.room()

    async def export_session(self, tenant: str, session_id: str) -> Exported:
        """The session as a signed file."""
        _, offer = await self._offered(tenant, session_id)
        return await self._transfers.export(session_id, offer)

    async def import_session(
        self, tenant: str, data: bytes, *, ttl_seconds: int | None = None, op_id: str | None = None
    ) -> SessionRecord:
        """A new session from an exported file. Nothing is stored before all of it has been checked."""
        self.refuse_if_draining()
        return await self._transfers.adopt(tenant, data, self.served(), ttl_seconds=ttl_seconds, op_id=op_id)

    async def append(
        self,
        tenant: str,
        session_id: str,
        *,
        text: str | None,
        messages: tuple[ChatMessage, ...] | None,
        op_id: str,
        wait: Wait,
        if_match: Tags = None,
    ) -> Appended:
        """Take text or messages in."""
        await self.enter(tenant, session_id)
        with self._admission.place(tenant):
            return await self._appends.append(
                Append(session_id=session_id, text=text, messages=messages, op_id=op_id, wait=wait, if_match=if_match)
            )

    async def append_stream(
        self,
        tenant: str,
        session_id: str,
        chunks: AsyncIterator[bytes],
        *,
        op_id: str,
        wait: Wait,
        if_match: Tags = None,
    ) -> Appended:
        """Take in UTF-8 text of any length; `chunks` is read only as fast as the pieces of it are journaled.

        Pieces have operation ids `op_id/0`, `op_id/1`, …, so that the same stream sent again goes on where it
        broke off. `if_match` is asked of the first one. Errors say how much was kept.
        """
        await self.enter(tenant, session_id)
        with self._admission.place(tenant):
            return await self._appends.append_stream(session_id, chunks, op_id, wait, if_match)

    async def generate(
        self,
        tenant: str,
        session_id: str,
        *,
        prompt: str | None,
        messages: tuple[ChatMessage, ...] | None,
        sampling: SamplingParams,
        remember: bool,
        op_id: str | None = None,
        if_match: Tags = None,
    ) -> Events:
        """The events of a generation; those of the first one for an `op_id` seen before. Closing the generator interrupts it."""
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
            op_id=op_id,
            if_match=if_match,
        )
        async with aclosing(self.metrics.timed(self._generations.follow(tenant, request))) as events:
            async for event in events:
                yield event

    async def resume(
        self, tenant: str, generation_id: str, *, after: int = -1, session_id: str | None = None
    ) -> Resumed:
        """A remembered generation again, from behind event number `after`, and on if it broke off.

        Raises `NotFound` if there is none, or if it is not one of `session_id`.
        """
        self.refuse_if_draining()
        self.served()
        record = await self._generations.recorded(tenant, generation_id)
        if session_id not in (None, record.session_id):
            raise no_generation()
        request = Resume(session_id=record.session_id, generation_id=generation_id, after=after)
        return Resumed(record.session_id, self._generations.follow(tenant, request))

    async def cancel(self, tenant: str, generation_id: str) -> None:
        """End a generation for good within one step; what was sampled stays if it is remembered."""
        await self._generations.cancel(tenant, generation_id)

    async def inspect(self, tenant: str, session_id: str) -> Inspected:
        """What a session's memory holds."""
        await self._offered(tenant, session_id)
        return _expect(Inspected, await self.pool.call(Inspect(session_id=session_id)))


def _session_id(text: str) -> str:
    """`text` itself, or `NotFound`: what comes from outside may be anything."""
    if not is_id("sess", text):
        raise NotFound("there is no such session", param="session_id")
    return text


def _expect(kind: type[Expected], answer: Answer) -> Expected:
    if not isinstance(answer, kind):
        raise Internal(f"a worker answered with {answer.kind} where {kind.__name__} was due")
    return answer
