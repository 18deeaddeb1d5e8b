"""/v1/sessions"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from server.bodies import read_json
from server.middleware import note_of
from server.routes.dependencies import ERRORS, Served, Tenant, documented
from server.schemas import CreateSession, DeletedSession, PatchSession, SessionBody, SessionList
from server.store.base import SessionRecord

router = APIRouter(tags=["sessions"], responses=ERRORS)

_ETAG = re.compile(r'"(\d{1,18})"')


@router.post("/v1/sessions", status_code=201, openapi_extra=documented(CreateSession))
async def create_session(request: Request, response: Response, service: Served, tenant: Tenant) -> SessionBody:
    """Create a session."""
    body = await read_json(request, CreateSession, service.settings.max_json_bytes)
    record = await service.create_session(
        tenant,
        model=body.model,
        memory=body.memory,
        system=body.system,
        metadata=body.metadata,
        ttl_seconds=body.ttl_seconds,
    )
    note_of(request).facts["session_id"] = record.id
    response.headers["Location"] = f"/v1/sessions/{record.id}"
    return _answer(service, record, response)


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
    if_match: Annotated[str | None, Header()] = None,
) -> SessionBody:
    """Replace metadata, lifetime, or both."""
    body = await read_json(request, PatchSession, service.settings.max_json_bytes)
    record = await service.update_session(
        tenant,
        session_id,
        metadata=body.metadata if "metadata" in body.model_fields_set else None,
        ttl_seconds=body.ttl_seconds if "ttl_seconds" in body.model_fields_set else "keep",
        if_versions=_versions(if_match),
    )
    return _answer(service, record, response)


@router.delete("/v1/sessions/{session_id}")
async def delete_session(session_id: str, service: Served, tenant: Tenant) -> DeletedSession:
    """Delete a session and all that is stored of it."""
    await service.delete_session(tenant, session_id)
    return DeletedSession(id=session_id)


def _answer(service: Served, record: SessionRecord, response: Response) -> SessionBody:
    response.headers["ETag"] = f'"{record.version}"'
    return SessionBody.of(record, service.pool.describe())


def _versions(if_match: str | None) -> frozenset[int] | None:
    """The versions an `If-Match` header names. Weak or foreign tags match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (_ETAG.fullmatch(tag.strip()) for tag in if_match.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)
