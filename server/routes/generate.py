"""/v1/sessions/{id}/generate and /v1/generations"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import JSONResponse

from server.bodies import read_json
from server.disconnects import cancelled_when_gone
from server.errors import Internal, InvalidRequest
from server.event_stream import Event, EventStream
from server.generations import Events
from server.messages import (
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    SampledLogprobs,
)
from server.middleware import Note, note_of
from server.routes.dependencies import (
    ERRORS,
    IdempotencyKey,
    IfMatch,
    Served,
    Tenant,
    documented,
    one_operation_id,
    quoted,
)
from server.schemas.requests import EventNumber, GenerateBody, chat
from server.schemas.responses import CancelledGeneration, GenerationBody
from server.service import Service

router = APIRouter(tags=["generations"], responses=ERRORS)

_NUMBER = re.compile(r"[0-9]{1,9}")
_MARGIN_SECONDS = 5.0
"""How much longer than a session is waited for its first event may take, before a stream begins with a ping."""


@router.post(
    "/v1/sessions/{session_id}/generate",
    response_model=GenerationBody,
    openapi_extra=documented(GenerateBody),
)
async def generate(
    session_id: str,
    request: Request,
    service: Served,
    tenant: Tenant,
    if_match: IfMatch,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Continue a session; as server-sent events with `stream` or `Accept: text/event-stream`."""
    note = note_of(request)
    note.facts["session_id"] = session_id
    body = await read_json(request, GenerateBody, service.settings.max_json_bytes)
    events = service.generate(
        tenant,
        session_id,
        prompt=body.prompt,
        messages=chat(body.messages),
        sampling=body.sampling(),
        remember=body.remember,
        op_id=one_operation_id(body.op_id, idempotency_key),
        if_match=if_match,
    )
    if not body.stream and "text/event-stream" not in request.headers.get("accept", ""):
        async with cancelled_when_gone(request.receive), aclosing(events):
            return await _whole(session_id, events, note)
    return _stream(service, as_sent(session_id, events, note))


@router.get("/v1/generations/{generation_id}/events", status_code=200, response_class=EventStream)
async def resume(
    generation_id: str,
    request: Request,
    service: Served,
    tenant: Tenant,
    after: Annotated[EventNumber, Query()] = -1,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Take a broken stream up again behind `Last-Event-ID`, or behind event number `after`."""
    if last_event_id is not None:
        # A browser sends it with the address it began with: it is the newer of the two.
        after = _number(generation_id, last_event_id)
    note = note_of(request)
    session_id, events = await service.resume(tenant, generation_id, after=after)
    note.facts["session_id"] = session_id
    return _stream(service, as_sent(session_id, events, note, after))


@router.post("/v1/generations/{generation_id}/cancel")
async def cancel(generation_id: str, service: Served, tenant: Tenant) -> CancelledGeneration:
    """Stop a running generation."""
    await service.cancel(tenant, generation_id)
    return CancelledGeneration(id=generation_id)


async def _whole(session_id: str, events: Events, note: Note) -> Response:
    logprobs: list[SampledLogprobs] | None = None
    async for event in events:
        match event:
            case GenerationStarted():
                pass
            case GenerationDelta():
                if event.logprobs is not None:
                    logprobs = [*(logprobs or []), *event.logprobs]
            case GenerationCompleted():
                note.facts |= counts(event)
                body = GenerationBody.of(session_id, event, logprobs)
                headers = {} if event.etag is None else {"ETag": quoted(event.etag)}
                return JSONResponse(body.model_dump(mode="json"), headers=headers)
    raise Internal("the generation ended without a result")


def _stream(service: Service, events: AsyncGenerator[Event, None]) -> EventStream:
    return EventStream(
        events,
        status_seconds=service.settings.lease_wait_seconds + _MARGIN_SECONDS,
        send_seconds=service.settings.send_timeout_seconds,
    )


def _number(generation_id: str, event_id: str) -> int:
    """The number in `<generation id>:<number>`."""
    told, _, number = event_id.rpartition(":")
    if told != generation_id or not _NUMBER.fullmatch(number):
        raise InvalidRequest(f"Last-Event-ID must be {generation_id}:<number>", param="last-event-id")
    return int(number)


async def as_sent(session_id: str, events: Events, note: Note, after: int = -1) -> AsyncGenerator[Event, None]:
    """Events of a generation as they are sent, numbered on from `after`."""
    number = after
    async with aclosing(events):
        async for event in events:
            number = event.index + 1 if isinstance(event, GenerationDelta) else number + 1
            if isinstance(event, GenerationCompleted):
                note.facts |= counts(event)
            name, data = event.kind, json.dumps(_fields(session_id, event), ensure_ascii=False)
            yield Event(name, data, f"{event.generation_id}:{number}")


def _fields(session_id: str, event: GenerationEvent) -> dict[str, object]:
    match event:
        case GenerationStarted():
            return {"generation_id": event.generation_id}
        case GenerationDelta():
            return event.model_dump(mode="json", include={"index", "text", "logprobs"}, exclude_none=True)
        case GenerationCompleted():
            return {"generation": GenerationBody.of(session_id, event).model_dump(mode="json")}


def counts(event: GenerationCompleted) -> dict[str, object]:
    """What the log may know of a generation."""
    return event.model_dump(exclude={"kind", "text"})
