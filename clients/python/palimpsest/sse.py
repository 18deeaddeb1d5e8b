"""Server-sent events of a generation, as records."""

from __future__ import annotations

from typing import Any

import httpx2

from palimpsest.types import (
    Generation,
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
)
from palimpsest.wire import api_error, decode, parse


def read_event(event: httpx2.ServerSentEvent) -> GenerationEvent | None:
    """One event as a record, None for kinds this version does not know. Raises `ApiError` for `error`."""
    known = event.event in ("generation.started", "generation.delta", "generation.completed", "error")
    return read_record(event.event, _with_id(decode(event.data), event.id)) if known else None


def read_record(kind: str, fields: dict[str, Any]) -> GenerationEvent | None:
    """The record behind an event's name and fields; shared with the WebSocket."""
    match kind:
        case "generation.started":
            return parse(GenerationStarted, fields)
        case "generation.delta":
            return parse(GenerationDelta, fields)
        case "generation.completed":
            return GenerationCompleted(parse(Generation, fields.get("generation", fields)))
        case "error":
            raise api_error(None, fields)
    return None


def _with_id(fields: dict[str, Any], event_id: str) -> dict[str, Any]:
    """Every event's id begins with the generation's: `<generation_id>:<n>`."""
    return {"generation_id": event_id.rpartition(":")[0]} | fields
