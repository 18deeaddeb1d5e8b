"""A file as an answer, given up on when nobody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.disconnects import SlowReader


class FileStream(Response):
    """Sends `chunks`, and lets go of `held` when they are sent, or the client takes nothing for `send_seconds`."""

    media_type = "application/octet-stream"

    def __init__(
        self,
        chunks: Sequence[bytes],
        *,
        headers: Mapping[str, str],
        held: AbstractContextManager[object],
        send_seconds: float,
    ) -> None:
        size = sum(map(len, chunks))
        super().__init__(headers={**headers, "Content-Length": str(size)})
        self._chunks = chunks
        self._held = held
        self._send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        with self._held:
            try:
                await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                for chunk in self._chunks:
                    await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
                await self._send(send, {"type": "http.response.body", "body": b""})
            except SlowReader:
                structlog.get_logger("server.files").info("file ended early", reason="SlowReader")

    async def _send(self, send: Send, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._send_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None
