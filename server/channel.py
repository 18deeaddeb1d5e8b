"""A session's WebSocket at work: one task reads, one carries out in order, one watches for the drain."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import structlog

from server.disconnects import ConnectionOver
from server.errors import Internal, Overloaded, ServerError
from server.generations import Events
from server.ids import new_id
from server.link import REFUSED, RESTARTING, Hangup, Link
from server.messages import GenerationCompleted, GenerationDelta, GenerationEvent, GenerationStarted
from server.records import (
    AppendRecord,
    CancelRecord,
    ClientRecord,
    GenerateRecord,
    PingRecord,
    ResumeRecord,
    Work,
    client_record,
)
from server.schemas.requests import chat
from server.schemas.responses import GenerationBody
from server.service import Service

_WAITING_RECORDS = 64
_WAITING_BYTES = 8 << 20
_BAD_FRAMES = 16


class Channel:
    """Runs until either side closes. What was acknowledged stays; what still waited is dropped."""

    def __init__(self, link: Link, service: Service, tenant: str, session_id: str) -> None:
        self._link = link
        self._service = service
        self._tenant = tenant
        self._session_id = session_id
        # None stands for "hang up". Bounded by `_enqueue`, which answers instead of waiting.
        self._waiting: asyncio.Queue[tuple[Work, int] | None] = asyncio.Queue()
        self._waiting_bytes = 0
        self._log = structlog.get_logger("server.channel")

    async def run(self) -> None:
        """Raises `Hangup` when it is ours to close, another `ConnectionOver` when the client is gone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._work())
                group.create_task(self._watch_drain())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _read(self) -> None:
        bad = 0
        while True:
            frame = await self._link.receive()
            fields = None
            try:
                fields = self._link.decode(frame)
                record = client_record(fields)
            except ServerError as error:
                await self._link.send_error(error, _op_id(fields))
                bad += 1
                if bad == _BAD_FRAMES:
                    raise Hangup(REFUSED, f"{bad} bad frames in a row") from None
                continue
            bad = 0
            await self._take(record, len(frame))

    async def _take(self, record: ClientRecord, size: int) -> None:
        try:
            match record:
                case PingRecord():
                    await self._link.send("pong", {})
                case CancelRecord():
                    await self._service.cancel(self._tenant, record.generation_id)
                case _:
                    self._enqueue(record, size)
        except ServerError as error:
            await self._link.send_error(error, _op_id(record.model_dump()))

    def _enqueue(self, work: Work, size: int) -> None:
        if self._waiting.qsize() >= _WAITING_RECORDS or self._waiting_bytes + size > _WAITING_BYTES:
            raise Overloaded("too many records wait their turn; send this one again when others have finished")
        self._waiting.put_nowait((work, size))
        self._waiting_bytes += size

    async def _work(self) -> None:
        while waiting := await self._waiting.get():
            work, size = waiting
            self._waiting_bytes -= size
            try:
                await self._carry_out(work)
            except ServerError as error:
                await self._link.send_error(error, work.op_id)
            except ConnectionOver:
                raise
            except Exception as error:
                # Its text could quote a prompt.
                self._log.error("record failed", error=type(error).__name__)
                internal = Internal("internal error; the server's log has it under this request's id")
                await self._link.send_error(internal, work.op_id)
        raise Hangup(RESTARTING, "the server is shutting down; connect again")

    async def _carry_out(self, work: Work) -> None:
        match work:
            case AppendRecord():
                await self._append(work)
            case GenerateRecord():
                await self._generate(work)
            case ResumeRecord():
                await self._resume(work)

    async def _append(self, record: AppendRecord) -> None:
        op_id = record.op_id or new_id("op")
        answer = await self._service.append(
            self._tenant,
            self._session_id,
            text=record.text,
            messages=chat(record.messages),
            op_id=op_id,
            # Acknowledged once durable: a client that sends much need not wait for the model.
            wait="journal",
        )
        done = {"op_id": op_id, "tokens": answer.tokens, "position": answer.position}
        await self._link.send("append.completed", done)

    async def _generate(self, record: GenerateRecord) -> None:
        events = self._service.generate(
            self._tenant,
            self._session_id,
            prompt=record.prompt,
            messages=chat(record.messages),
            sampling=record.sampling(),
            remember=record.remember,
            op_id=record.op_id,
        )
        await self._tell(events, record.op_id)

    async def _resume(self, record: ResumeRecord) -> None:
        resumed = await self._service.resume(
            self._tenant, record.generation_id, after=record.after, session_id=self._session_id
        )
        await self._tell(resumed.events, record.op_id)

    async def _tell(self, events: Events, op_id: str | None) -> None:
        async with aclosing(events):
            async for event in events:
                await self._link.send(event.kind, self._event_fields(event, op_id))

    def _event_fields(self, event: GenerationEvent, op_id: str | None) -> dict[str, object]:
        echoed: dict[str, object] = {"op_id": op_id} if op_id else {}
        match event:
            case GenerationStarted():
                return {"generation_id": event.generation_id} | echoed
            case GenerationDelta():
                return event.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
            case GenerationCompleted():
                body = GenerationBody.of(self._session_id, event)
                return {"generation": body.model_dump(mode="json")} | echoed

    async def _watch_drain(self) -> None:
        await self._service.draining.wait()
        # Behind what waits: a running generation may end, and the rest is refused one by one.
        self._waiting.put_nowait(None)


def _op_id(fields: object) -> str | None:
    op_id = fields.get("op_id") if isinstance(fields, dict) else None
    return op_id if isinstance(op_id, str) and len(op_id) <= 128 else None
