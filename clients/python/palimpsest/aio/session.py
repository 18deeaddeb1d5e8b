"""One session, on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Unpack

from palimpsest import calls
from palimpsest.aio.stream import AsyncEventStream
from palimpsest.aio.transport import AsyncTransport
from palimpsest.aio.websocket import AsyncSessionSocket
from palimpsest.bodies import AsyncTextSource, async_pieces, rewinder
from palimpsest.calls import Wait
from palimpsest.records import Encoding
from palimpsest.types import Generation, Memory, Message, Sampling, Segment, Session


class AsyncSessionHandle:
    """A session to read into and to ask. `info` is what was known when it was made or last refreshed."""

    def __init__(self, transport: AsyncTransport, info: Session) -> None:
        self._transport = transport
        self.info = info

    @property
    def id(self) -> str:
        """The session's id."""
        return self.info.id

    async def refresh(self) -> Session:
        """Ask the server anew what it knows of the session."""
        self.info = await self._transport.run(calls.get_session(self.id))
        return self.info

    async def append(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        op_id: str | None = None,
        wait: Wait = "memory",
    ) -> Segment:
        """Take in text or messages. With the same `op_id` it is applied once, however often it is sent.

        `wait="journal"` returns as soon as it cannot be lost, before it is in memory.
        """
        return await self._transport.run(calls.append(self.id, text, messages, op_id, wait))

    async def append_stream(
        self, source: AsyncTextSource, *, op_id: str | None = None, wait: Wait = "memory"
    ) -> Segment:
        """Take in a file or an iterable, plain or asynchronous, of text (str, or UTF-8 bytes) in one request.

        Sent again after a failure only if it is a file that can be rewound.
        """
        rewind = rewinder(source)

        def body() -> AsyncIterable[bytes]:
            if rewind:
                rewind()
            return async_pieces(source)

        call = calls.append_stream(self.id, op_id, wait, rewindable=rewind is not None)
        return await self._transport.run(call, body)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continue the session and wait for the whole text. `remember=False` leaves no trace in it."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return await self._transport.run(calls.generate(self.id, fields))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> AsyncEventStream:
        """The same, event by event as the text is made. Leaving the stream cancels the generation."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return AsyncEventStream(self._transport, calls.stream(self.id, fields))

    def connect(self, encoding: Encoding = "msgpack") -> AsyncSessionSocket:
        """A WebSocket to this session, used with `async with`."""
        http = self._transport.http
        return AsyncSessionSocket(http.base_url, self.id, http.headers.get("authorization"), encoding)

    async def memory(self) -> Memory:
        """What the session's memory holds."""
        return await self._transport.run(calls.memory(self.id))
