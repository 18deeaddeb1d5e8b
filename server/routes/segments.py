"""/v1/sessions/{id}/segments"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from server.appends import Tags
from server.bodies import media_type, read_json
from server.disconnects import ClientGone
from server.ids import new_id
from server.messages import Appended
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
from server.schemas.requests import AppendBody, chat
from server.schemas.responses import SegmentBody

router = APIRouter(tags=["segments"], responses=ERRORS)

Wait = Literal["memory", "journal"]


@router.post("/v1/sessions/{session_id}/segments", openapi_extra=documented(AppendBody, text=True))
async def append(
    session_id: str,
    request: Request,
    response: Response,
    service: Served,
    tenant: Tenant,
    if_match: IfMatch,
    wait: Annotated[Wait, Query()] = "memory",
    idempotency_key: IdempotencyKey = None,
) -> SegmentBody:
    """Take text or messages in. A text/plain body may have any length; it is taken in while it arrives."""
    note_of(request).facts["session_id"] = session_id
    take = _append_text if media_type(request) == "text" else _append_json
    answer = await take(session_id, request, service, tenant, wait, idempotency_key, if_match)
    note_of(request).facts |= {"tokens": answer.tokens, "position": answer.position}
    response.status_code = 202 if wait == "journal" else 200
    if answer.etag is not None:
        response.headers["ETag"] = quoted(answer.etag)
    return SegmentBody.of(session_id, answer.op_id or "", answer)


async def _append_text(
    session_id: str, request: Request, service: Served, tenant: str, wait: Wait, key: str | None, if_match: Tags
) -> Appended:
    try:
        return await service.append_stream(
            tenant, session_id, request.stream(), op_id=key or new_id("op"), wait=wait, if_match=if_match
        )
    except ClientDisconnect:
        raise ClientGone from None


async def _append_json(
    session_id: str, request: Request, service: Served, tenant: str, wait: Wait, key: str | None, if_match: Tags
) -> Appended:
    body = await read_json(request, AppendBody, service.settings.max_json_bytes)
    op_id = one_operation_id(body.op_id, key) or new_id("op")
    answer = await service.append(
        tenant, session_id, text=body.text, messages=chat(body.messages), op_id=op_id, wait=wait, if_match=if_match
    )
    return answer.model_copy(update={"op_id": op_id})
