"""One session, on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Unpack

from palimpsest import calls
from palimpsest.aio.stream import AsyncEventStream
from palimpsest.aio.transport import AsyncTransport
from palimpsest.aio.websocket import AsyncSessionSocket
from palimpsest.bodies import AsyncTextSource, async_pieces, rewinder
from palimpsest.calls import Wait
from palimpsest.errors import SocketClosed
from palimpsest.records import Encoding, Endpoint, socket_url
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
        if_match: str | None = None,
    ) -> Segment:
        """Take in text or messages. With the same `op_id` it is applied once, however often it is sent. Raises
        `PreconditionFailed` when the session is not in the state `if_match` names any more.

        `wait="journal"` returns as soon as it cannot be lost, before it is in memory.
        """
        return await self._transport.run(calls.append(self.id, text, messages, op_id, wait, if_match))

    async def append_stream(
        self,
        source: AsyncTextSource,
        *,
        op_id: str | None = None,
        wait: Wait = "memory",
        if_match: str | None = None,
    ) -> Segment:
        """Take in a file or an iterable, plain or asynchronous, of text (str, or UTF-8 bytes) in one request.

        Sent again after a failure only if it is a file that can be rewound.
        """
        rewind = rewinder(source)

        def body() -> AsyncIterable[bytes]:
            if rewind:
                rewind()
            return async_pieces(source)

        call = calls.append_stream(self.id, op_id, wait, if_match, rewindable=rewind is not None)
        return await self._transport.run(call, body)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        op_id: str | None = None,
        if_match: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continue the session and wait for the whole text. `remember=False` leaves no trace in it.

        With the same `op_id` it is generated once, however often it is asked for. Raises `PreconditionFailed` when
        the session is not in the state `if_match` names any more.
        """
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return await self._transport.run(calls.generate(self.id, fields, op_id, if_match))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        op_id: str | None = None,
        if_match: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncEventStream:
        """The same, event by event as the text is made. Leaving the stream stops the generation; `Client.resume`, or
        asking again with the same `op_id`, goes on with it."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return AsyncEventStream(self._transport, calls.stream(self.id, fields, op_id, if_match))

    async def fork(
        self,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
        op_id: str | None = None,
    ) -> AsyncSessionHandle:
        """A new session with the same memory and a future of its own; takes no longer for a longer session.

        Without `metadata` it gets a copy of this one's.
        """
        call = calls.fork_session(self.id, metadata, ttl_seconds, if_match, op_id)
        return AsyncSessionHandle(self._transport, await self._transport.run(call))

    async def export(self) -> bytes:
        """The whole session, signed by the server, for `Client.import_session`."""
        return await self._transport.run(calls.export_session(self.id))

    async def export_to(self, path: str | PathLike[str]) -> None:
        """The same into a file, piece by piece. The file changes only once all of it has come; its owner alone may
        read it. Raises `OSError` when it cannot be written."""
        await self._transport.save(calls.export_session(self.id), Path(path))

    def connect(
        self,
        encoding: Encoding = "msgpack",
        *,
        retries: int | None = None,
        on_lost: Callable[[SocketClosed], None] | None = None,
    ) -> AsyncSessionSocket:
        """A WebSocket to this session, used with `async with`.

        A connection that is lost is made again, up to `retries` times in a row (by default as often as the client
        repeats requests); `on_lost` is told of it before.
        """
        http, policy = self._transport.http, self._transport.policy
        address = socket_url(http.base_url, self.id)
        endpoint = Endpoint(address, http.headers.get("authorization"), encoding)
        policy = policy if retries is None else replace(policy, retries=retries)
        return AsyncSessionSocket(endpoint, policy, on_lost)

    async def memory(self) -> Memory:
        """What the session's memory holds."""
        return await self._transport.run(calls.memory(self.id))
