"""/v1/sessions/{id}/generate and /v1/generations"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from server.bodies import read_json
from server.disconnects import cancelled_when_gone
from server.errors import Internal
from server.event_stream import Event, EventStream
from server.messages import (
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    SampledLogprobs,
)
from server.middleware import Note, note_of
from server.routes.dependencies import ERRORS, Served, Tenant, documented
from server.schemas import CancelledGeneration, GenerateBody, GenerationBody, chat

router = APIRouter(tags=["generations"], responses=ERRORS)

Events = AsyncGenerator[GenerationEvent, None]


@router.post(
    "/v1/sessions/{session_id}/generate",
    response_model=GenerationBody,
    openapi_extra=documented(GenerateBody),
)
async def generate(session_id: str, request: Request, service: Served, tenant: Tenant) -> Response:
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
    )
    if not body.stream and "text/event-stream" not in request.headers.get("accept", ""):
        async with cancelled_when_gone(request.receive), aclosing(events):
            return await _whole(session_id, events, note)
    # Until here, what goes wrong has a status of its own.
    async with cancelled_when_gone(request.receive):
        first = await anext(events)
    return EventStream(
        first.generation_id,
        _as_sent(session_id, first, events, note),
        send_seconds=service.settings.send_timeout_seconds,
    )


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
                return JSONResponse(body.model_dump(mode="json"))
    raise Internal("the generation ended without a result")


async def _as_sent(session_id: str, first: GenerationEvent, events: Events, note: Note) -> AsyncGenerator[Event, None]:
    async with aclosing(events):
        yield _sent(session_id, first)
        async for event in events:
            if isinstance(event, GenerationCompleted):
                note.facts |= counts(event)
            yield _sent(session_id, event)


def _sent(session_id: str, event: GenerationEvent) -> Event:
    match event:
        case GenerationStarted():
            fields: dict[str, object] = {"generation_id": event.generation_id}
        case GenerationDelta():
            fields = event.model_dump(mode="json", include={"index", "text", "logprobs"}, exclude_none=True)
        case GenerationCompleted():
            fields = {"generation": GenerationBody.of(session_id, event).model_dump(mode="json")}
    return Event(event.kind, json.dumps(fields, ensure_ascii=False))


def counts(event: GenerationCompleted) -> dict[str, object]:
    """What the log may know of a generation."""
    return event.model_dump(exclude={"kind", "text"})
