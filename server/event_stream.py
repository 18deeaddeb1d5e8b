"""Server-sent events of a generation, with pings, flow control and cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from typing import Any, NamedTuple

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.answers import error_response
from server.disconnects import ConnectionOver, SlowReader, raise_when_gone
from server.errors import Internal, ServerError

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_WAITING_EVENTS = 64


class Event(NamedTuple):
    """One event: its name, its JSON, and the id after which a client may take the stream up again."""

    name: str
    data: str
    id: str | None = None


def error_event(error: ServerError) -> Event:
    """The last event of a stream that failed. It has no id: what would have come in its place is still to be told."""
    return Event("error", json.dumps(error.body()))


class EventStream(Response):
    """Sends events while they come.

    What goes wrong before the first one, and within `status_seconds`, is answered with its own status. A client that goes away,
    or takes nothing for `send_seconds`, ends the source.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        *,
        ping_seconds: float = 15.0,
        status_seconds: float,
        send_seconds: float,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._ping_seconds = ping_seconds
        self._status_seconds = status_seconds
        self._send_seconds = send_seconds
        # Bounded: a source that is faster than the client waits. Empty bytes stand for the end.
        self._waiting: asyncio.Queue[bytes | ServerError] = asyncio.Queue(_WAITING_EVENTS)
        self._begun = False
        self._log = structlog.get_logger("server.events")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        gone: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(raise_when_gone(receive))
                group.create_task(self._feed())
                await self._answer(scope, receive, send)
                watcher.cancel()
        except* ConnectionOver as over:
            gone = over.exceptions[0]
            self._log.info("stream ended early", reason=type(gone).__name__)
        if gone is not None and not self._begun:
            raise gone

    async def _feed(self) -> None:
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await self._waiting.put(_frame(event))
            except ServerError as error:
                await self._waiting.put(error)
            except Exception as error:
                # Its text could quote a prompt.
                self._log.error("stream failed", error=type(error).__name__)
                await self._waiting.put(Internal("internal error; the server's log has it under this request's id"))
        await self._waiting.put(b"")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await self._next(self._status_seconds)
        if isinstance(first, ServerError):
            await error_response(HTTPConnection(scope), first)(scope, receive, send)
        else:
            self._begun = True
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_frames(send, first)

    async def _send_frames(self, send: Send, frame: bytes | ServerError) -> None:
        while True:
            raw = _frame(error_event(frame)) if isinstance(frame, ServerError) else frame
            await self._send(send, {"type": "http.response.body", "body": raw, "more_body": bool(raw)})
            if not raw:
                return
            frame = await self._next(self._ping_seconds)

    async def _next(self, seconds: float) -> bytes | ServerError:
        """What comes next; a ping after so many seconds of silence."""
        try:
            async with asyncio.timeout(seconds):
                return await self._waiting.get()
        except TimeoutError:
            return KEEPALIVE_COMMENT

    async def _send(self, send: Send, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._send_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


def _frame(event: Event) -> bytes:
    return format_sse_event(event=event.name, data_str=event.data, id=event.id)
