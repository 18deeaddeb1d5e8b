"""One WebSocket as records: encoded, limited in size, and given up on when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from server.codecs import Codec
from server.disconnects import ClientGone, ConnectionOver, SlowReader
from server.errors import ServerError
from server.validation import printable

MAX_FRAME_BYTES = 1 << 20
REFUSED, TOO_BIG, RESTARTING, TRY_LATER = 1008, 1009, 1012, 1013
_LONGEST_REASON = 120


class Hangup(ConnectionOver):
    """We close, with a code and the reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Link:
    """Sends and receives. Every method may raise a `ConnectionOver`."""

    def __init__(self, websocket: WebSocket, codec: Codec, send_seconds: float) -> None:
        self._websocket = websocket
        self._codec = codec
        self._send_seconds = send_seconds

    async def receive(self) -> str | bytes:
        """The next frame, not yet decoded: a bad one need not end the connection."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        frame: str | bytes | None = message.get("text")
        if frame is None:
            frame = message["bytes"]
        size = len(frame.encode("utf-8", "replace")) if isinstance(frame, str) else len(frame)
        if size > MAX_FRAME_BYTES:
            raise Hangup(TOO_BIG, f"a frame may hold {MAX_FRAME_BYTES} bytes; send long text over HTTP")
        return frame

    def decode(self, frame: str | bytes) -> Any:
        """The record in a frame. Raises `MalformedBody`."""
        return self._codec.decode(frame)

    async def send(self, type_: str, fields: Mapping[str, Any]) -> None:
        """Send one record."""
        frame = self._codec.encode({"type": type_, **fields})
        text = isinstance(frame, str)
        message = {"type": "websocket.send", "text" if text else "bytes": frame}
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._websocket.send(message)
        except TimeoutError:
            raise SlowReader from None
        except (WebSocketDisconnect, RuntimeError) as error:
            # Starlette's and uvicorn's ways of saying that the connection has closed.
            raise ClientGone from error

    async def send_error(self, error: ServerError, op_id: str | None = None) -> None:
        """Send an error record."""
        fields = {key: value and printable(value) for key, value in error.body()["error"].items()}
        await self.send("error", {"error": fields} | ({"op_id": printable(op_id)} if op_id else {}))

    async def close(self, code: int, reason: str) -> None:
        """Close; a client that is gone or does not read is left to the transport."""
        short = printable(reason).encode()[:_LONGEST_REASON].decode("utf-8", "ignore")
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._websocket.close(code, short)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return
