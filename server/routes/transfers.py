"""/v1/sessions/{id}/export and /v1/sessions/import"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from server.bodies import read_file
from server.file_stream import FileStream
from server.middleware import note_of
from server.routes.dependencies import ERRORS, IdempotencyKey, Served, Tenant, one_operation_id, quoted
from server.routes.sessions import made
from server.schemas.requests import Lifetime, OperationId
from server.schemas.responses import SessionBody

router = APIRouter(tags=["sessions"], responses=ERRORS)

_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("/v1/sessions/{session_id}/export", status_code=200, response_class=FileStream)
async def export_session(session_id: str, request: Request, service: Served, tenant: Tenant) -> FileStream:
    """The session as a signed file."""
    note_of(request).facts["session_id"] = session_id
    with ExitStack() as held:
        held.enter_context(service.file_room())
        record, chunks = await service.export_session(tenant, session_id)
        headers = {
            "Content-Disposition": f'attachment; filename="{record.id}.palimpsest"',
            "ETag": quoted(record.etag),
        }
        return FileStream(
            chunks, headers=headers, held=held.pop_all(), send_seconds=service.settings.send_timeout_seconds
        )


@router.post("/v1/sessions/import", status_code=201, openapi_extra={"requestBody": {"content": _FILE}})
async def import_session(
    request: Request,
    response: Response,
    service: Served,
    tenant: Tenant,
    ttl_seconds: Annotated[Lifetime | None, Query()] = None,
    op_id: Annotated[OperationId | None, Query()] = None,
    idempotency_key: IdempotencyKey = None,
) -> SessionBody:
    """A new session from an exported file."""
    with service.file_room():
        record = await service.import_session(
            tenant,
            await read_file(request, service.settings.max_import_bytes),
            ttl_seconds=ttl_seconds,
            op_id=one_operation_id(op_id, idempotency_key),
        )
    return made(request, response, service, record)
