"""Server-sent events of a generation, with pings, flow control and cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from typing import Any, NamedTuple

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.disconnects import ConnectionOver, SlowReader, raise_when_gone
from server.errors import Internal, ServerError

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_WAITING_EVENTS = 64


class Event(NamedTuple):
    """One event: its name and its JSON."""

    name: str
    data: str


def error_event(error: ServerError) -> Event:
    """The last event of a stream that failed."""
    return Event("error", json.dumps(error.body()))


class EventStream(Response):
    """Sends events while they come.

    A client that goes away, or takes nothing for `send_seconds`, ends the source.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream_id: str,
        events: AsyncGenerator[Event, None],
        *,
        ping_seconds: float = 15.0,
        send_seconds: float,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._stream_id = stream_id
        self._events = events
        self._ping_seconds = ping_seconds
        self._send_seconds = send_seconds
        # Bounded: a source that is faster than the client waits.
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(_WAITING_EVENTS)
        self._log = structlog.get_logger("server.events")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(raise_when_gone(receive))
                group.create_task(self._feed())
                await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send_frames(send)
                watcher.cancel()
        except* ConnectionOver as over:
            self._log.info("stream ended early", reason=type(over.exceptions[0]).__name__)

    async def _feed(self) -> None:
        number = 0
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await self._frames.put(self._frame(event, number))
                    number += 1
            except ServerError as error:
                await self._frames.put(self._frame(error_event(error), number))
            except Exception as error:
                self._log.error("stream failed", error=type(error).__name__)
                internal = Internal("internal error; the server's log has it under this request's id")
                await self._frames.put(self._frame(error_event(internal), number))
        await self._frames.put(b"")

    def _frame(self, event: Event, number: int) -> bytes:
        return format_sse_event(event=event.name, data_str=event.data, id=f"{self._stream_id}:{number}")

    async def _send_frames(self, send: Send) -> None:
        while True:
            try:
                async with asyncio.timeout(self._ping_seconds):
                    frame = await self._frames.get()
            except TimeoutError:
                frame = KEEPALIVE_COMMENT
            await self._send(send, {"type": "http.response.body", "body": frame, "more_body": bool(frame)})
            if not frame:
                return

    async def _send(self, send: Send, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._send_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None
