"""What a client sends over a WebSocket."""

from __future__ import annotations

from typing import Literal

from server.errors import InvalidRequest
from server.schemas.requests import AppendBody, EventNumber, GenerateBody, OperationId, RequestBody
from server.validation import validated


class AppendRecord(AppendBody):
    """Take text or messages in."""

    type: Literal["append"]


class GenerateRecord(GenerateBody):
    """Continue the session. `op_id` comes back with every record that starts or ends the generation."""

    type: Literal["generate"]


class ResumeRecord(RequestBody):
    """Take a generation up again behind its event number `after`. `op_id` comes back as with `generate`."""

    type: Literal["resume"]
    generation_id: str
    after: EventNumber = -1
    op_id: OperationId | None = None


class CancelRecord(RequestBody):
    """Stop a running generation."""

    type: Literal["cancel"]
    generation_id: str


class PingRecord(RequestBody):
    """Ask for a `pong`."""

    type: Literal["ping"]


Work = AppendRecord | GenerateRecord | ResumeRecord
ClientRecord = Work | CancelRecord | PingRecord


def client_record(fields: object) -> ClientRecord:
    """Raises `InvalidRequest`."""
    if not isinstance(fields, dict):
        raise InvalidRequest("a record must be an object with a type")
    match fields.get("type"):
        case "append":
            return validated(AppendRecord, fields)
        case "generate":
            return validated(GenerateRecord, fields)
        case "resume":
            return validated(ResumeRecord, fields)
        case "cancel":
            return validated(CancelRecord, fields)
        case "ping":
            return validated(PingRecord, fields)
        case _:
            raise InvalidRequest("type must be append, generate, resume, cancel or ping", param="type")
