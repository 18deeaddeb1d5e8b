"""/v1/sessions"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from server.bodies import read_json
from server.middleware import note_of
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
from server.schemas.requests import CreateSession, ForkSession, PatchSession
from server.schemas.responses import DeletedSession, SessionBody, SessionList
from server.store.base import SessionRecord

router = APIRouter(tags=["sessions"], responses=ERRORS)


@router.post("/v1/sessions", status_code=201, openapi_extra=documented(CreateSession))
async def create_session(
    request: Request, response: Response, service: Served, tenant: Tenant, idempotency_key: IdempotencyKey = None
) -> SessionBody:
    """Create a session."""
    body = await read_json(request, CreateSession, service.settings.max_json_bytes)
    record = await service.create_session(
        tenant,
        model=body.model,
        memory=body.memory,
        system=body.system,
        metadata=body.metadata,
        ttl_seconds=body.ttl_seconds,
        op_id=one_operation_id(body.op_id, idempotency_key),
    )
    return made(request, response, service, record)


@router.get("/v1/sessions")
async def list_sessions(
    service: Served,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> SessionList:
    """List sessions by creation time."""
    page = await service.list_sessions(tenant, limit=limit, after=after, order=order)
    return SessionList.of(page, service.pool.describe())


@router.get("/v1/sessions/{session_id}")
async def get_session(session_id: str, response: Response, service: Served, tenant: Tenant) -> SessionBody:
    """One session."""
    return _answer(service, await service.get_session(tenant, session_id), response)


@router.patch("/v1/sessions/{session_id}", openapi_extra=documented(PatchSession))
async def update_session(
    session_id: str,
    request: Request,
    response: Response,
    service: Served,
    tenant: Tenant,
    if_match: IfMatch,
) -> SessionBody:
    """Replace metadata, lifetime, or both."""
    body = await read_json(request, PatchSession, service.settings.max_json_bytes)
    record = await service.update_session(
        tenant,
        session_id,
        metadata=body.metadata if "metadata" in body.model_fields_set else None,
        ttl_seconds=body.ttl_seconds if "ttl_seconds" in body.model_fields_set else "keep",
        if_match=if_match,
    )
    return _answer(service, record, response)


@router.delete("/v1/sessions/{session_id}")
async def delete_session(session_id: str, service: Served, tenant: Tenant, if_match: IfMatch) -> DeletedSession:
    """Delete a session and all that is stored of it."""
    await service.delete_session(tenant, session_id, if_match=if_match)
    return DeletedSession(id=session_id)


@router.post("/v1/sessions/{session_id}/fork", status_code=201, openapi_extra=documented(ForkSession))
async def fork_session(
    session_id: str,
    request: Request,
    response: Response,
    service: Served,
    tenant: Tenant,
    if_match: IfMatch,
    idempotency_key: IdempotencyKey = None,
) -> SessionBody:
    """A new session with the same memory and its own future."""
    body = await read_json(request, ForkSession, service.settings.max_json_bytes)
    record = await service.fork_session(
        tenant,
        session_id,
        metadata=body.metadata if "metadata" in body.model_fields_set else None,
        ttl_seconds=body.ttl_seconds if "ttl_seconds" in body.model_fields_set else "keep",
        if_match=if_match,
        op_id=one_operation_id(body.op_id, idempotency_key),
    )
    return made(request, response, service, record)


def made(request: Request, response: Response, service: Served, record: SessionRecord) -> SessionBody:
    """The answer of whatever made a session."""
    note_of(request).facts["session_id"] = record.id
    response.headers["Location"] = f"/v1/sessions/{record.id}"
    return _answer(service, record, response)


def _answer(service: Served, record: SessionRecord, response: Response) -> SessionBody:
    response.headers["ETag"] = quoted(record.etag)
    return SessionBody.of(record, service.pool.describe())
