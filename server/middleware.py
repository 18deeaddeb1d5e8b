"""Gives every request an id, one log line, a place in the figures, and an answer even when the code behind it fails."""

from __future__ import annotations

import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.answers import error_response
from server.errors import Internal
from server.ids import new_id
from server.metrics import ServiceMetrics

REQUEST_ID = "x-request-id"
_LONGEST_ID = 128


@dataclass
class Note:
    """What the log line of one request says.

    `facts` holds ids and counts, never text of a prompt or an answer.
    """

    request_id: str
    began: float
    status: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def note_of(connection: HTTPConnection) -> Note:
    """The note of the request that is being answered."""
    note = connection.scope["state"]["note"]
    assert isinstance(note, Note)
    return note


class RequestContext:
    """Pure ASGI middleware; the outermost of ours."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics
        self._log = structlog.get_logger("server.requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        note = Note(_request_id(Headers(scope=scope)), time.perf_counter())
        scope.setdefault("state", {})["note"] = note

        async def send_with_id(message: Message) -> None:
            _watch(note, message)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=note.request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                await self._failed(scope, receive, send_with_id, note, error)
            finally:
                self._write(scope, note)

    async def _failed(self, scope: Scope, receive: Receive, send: Send, note: Note, error: Exception) -> None:
        # The text of an unforeseen error could quote a prompt: the log gets its type and where it was raised.
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        self._log.error("request failed", error=type(error).__name__, where=where)
        internal = Internal(f"internal error; the server's log has it under request id {note.request_id}")
        if note.status is None and scope["type"] == "http":
            await error_response(HTTPConnection(scope), internal)(scope, receive, send)
        elif scope["type"] == "websocket":
            # uvicorn and starlette have these ways of saying that there is nobody left.
            with suppress(OSError, RuntimeError):
                await send({"type": "websocket.close", "code": 1011, "reason": "internal error"})

    def _write(self, scope: Scope, note: Note) -> None:
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        method, seconds = scope.get("method", "WS"), time.perf_counter() - note.began
        self._metrics.answered(method, route, note.status or 0, seconds)
        self._log.info(
            "request",
            method=method,
            path=route,
            status=note.status,
            milliseconds=round(seconds * 1000, 1),
            **note.facts,
        )


def _watch(note: Note, message: Message) -> None:
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            note.status = message["status"]
        case "websocket.accept":
            note.status = 101
        case "websocket.close":
            note.status = message.get("code", 1000)
            return
        case _:
            return
    MutableHeaders(scope=message)[REQUEST_ID] = note.request_id


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    sane = 0 < len(given) <= _LONGEST_ID and all("!" <= character <= "~" for character in given)
    return given if sane else new_id("req")
