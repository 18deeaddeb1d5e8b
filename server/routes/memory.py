"""/v1/sessions/{id}/memory"""

from __future__ import annotations

from fastapi import APIRouter

from server.routes.dependencies import ERRORS, Served, Tenant
from server.schemas.responses import MemoryBody

router = APIRouter(tags=["sessions"], responses=ERRORS)


@router.get("/v1/sessions/{session_id}/memory")
async def get_memory(session_id: str, service: Served, tenant: Tenant) -> MemoryBody:
    """What the session's memory holds: bytes, folds, figures of every layer, and remembered text."""
    return MemoryBody.of(session_id, await service.inspect(tenant, session_id))
