"""WS /v1/sessions/{id}/stream"""

from __future__ import annotations

import structlog
from fastapi import APIRouter, WebSocket

from server.auth import tenant_of
from server.channel import Channel
from server.codecs import CODECS, JSON
from server.disconnects import ConnectionOver
from server.errors import Draining, ServerError, Unavailable
from server.link import REFUSED, RESTARTING, TRY_LATER, Hangup, Link
from server.middleware import note_of
from server.routes.dependencies import Served
from server.schemas.responses import SessionBody
from server.service import Service

router = APIRouter()


@router.websocket("/v1/sessions/{session_id}/stream")
async def stream(session_id: str, websocket: WebSocket, service: Served) -> None:
    """The verbs of a session over one socket."""
    note_of(websocket).facts["session_id"] = session_id
    offered = websocket.scope["subprotocols"]
    subprotocol = next((name for name in offered if name in CODECS), None)
    # Accepted before it is refused: a browser sees neither status nor body of a failed handshake.
    await websocket.accept(subprotocol)
    codec = CODECS[subprotocol] if subprotocol else JSON
    link = Link(websocket, codec, service.settings.send_timeout_seconds)
    with service.at_work():
        try:
            if offered and subprotocol is None:
                raise Hangup(REFUSED, "offer the subprotocol " + " or ".join(CODECS))
            channel = await _enter(websocket, link, service, session_id)
            await channel.run()
        except Hangup as hangup:
            await link.close(hangup.code, hangup.reason)
        except ConnectionOver as over:
            structlog.get_logger("server.stream").info("socket ended", reason=type(over).__name__)


async def _enter(websocket: WebSocket, link: Link, service: Service, session_id: str) -> Channel:
    """Check who comes and what is there. Raises `Hangup`, after an error record that says why."""
    try:
        tenant = tenant_of(websocket, service.settings.api_keys)
        record = await service.enter(tenant, session_id)
    except ServerError as error:
        await link.send_error(error)
        raise Hangup(_close_code(error), error.message) from None
    session = SessionBody.of(record, service.pool.describe())
    await link.send("session.ready", {"session": session.model_dump(mode="json")})
    return Channel(link, service, tenant, session_id)


def _close_code(error: ServerError) -> int:
    match error:
        case Draining():
            return RESTARTING
        case Unavailable():
            return TRY_LATER
        case _:
            return REFUSED
