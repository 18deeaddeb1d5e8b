"""One session, synchronously."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Unpack

from palimpsest import calls
from palimpsest.bodies import TextSource, pieces, rewinder
from palimpsest.calls import Wait
from palimpsest.errors import SocketClosed
from palimpsest.records import Encoding, Endpoint, socket_url
from palimpsest.stream import EventStream
from palimpsest.transport import Transport
from palimpsest.types import Generation, Memory, Message, Sampling, Segment, Session
from palimpsest.websocket import SessionSocket


class SessionHandle:
    """A session to read into and to ask. `info` is what was known when it was made or last refreshed."""

    def __init__(self, transport: Transport, info: Session) -> None:
        self._transport = transport
        self.info = info

    @property
    def id(self) -> str:
        """The session's id."""
        return self.info.id

    def refresh(self) -> Session:
        """Ask the server anew what it knows of the session."""
        self.info = self._transport.run(calls.get_session(self.id))
        return self.info

    def append(
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
        return self._transport.run(calls.append(self.id, text, messages, op_id, wait, if_match))

    def append_stream(
        self,
        source: TextSource,
        *,
        op_id: str | None = None,
        wait: Wait = "memory",
        if_match: str | None = None,
    ) -> Segment:
        """Take in a file or an iterable of text (str, or UTF-8 bytes), of any size, in one request.

        Sent again after a failure only if it is a file that can be rewound.
        """
        rewind = rewinder(source)

        def body() -> Iterable[bytes]:
            if rewind:
                rewind()
            return pieces(source)

        call = calls.append_stream(self.id, op_id, wait, if_match, rewindable=rewind is not None)
        return self._transport.run(call, body)

    def generate(
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
        return self._transport.run(calls.generate(self.id, fields, op_id, if_match))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        op_id: str | None = None,
        if_match: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> EventStream:
        """The same, event by event as the text is made. Leaving the stream stops the generation; `Client.resume`, or
        asking again with the same `op_id`, goes on with it."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return EventStream(self._transport, calls.stream(self.id, fields, op_id, if_match))

    def fork(
        self,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
        op_id: str | None = None,
    ) -> SessionHandle:
        """A new session with the same memory and a future of its own; takes no longer for a longer session.

        Without `metadata` it gets a copy of this one's.
        """
        call = calls.fork_session(self.id, metadata, ttl_seconds, if_match, op_id)
        return SessionHandle(self._transport, self._transport.run(call))

    def export(self) -> bytes:
        """The whole session, signed by the server, for `Client.import_session`."""
        return self._transport.run(calls.export_session(self.id))

    def export_to(self, path: str | PathLike[str]) -> None:
        """The same into a file, piece by piece. The file changes only once all of it has come; its owner alone may
        read it. Raises `OSError` when it cannot be written."""
        self._transport.save(calls.export_session(self.id), Path(path))

    def connect(
        self,
        encoding: Encoding = "msgpack",
        *,
        retries: int | None = None,
        on_lost: Callable[[SocketClosed], None] | None = None,
    ) -> SessionSocket:
        """A WebSocket to this session, as a context manager.

        A connection that is lost is made again, up to `retries` times in a row (by default as often as the client
        repeats requests); `on_lost` is told of it before.
        """
        http, policy = self._transport.http, self._transport.policy
        address = socket_url(http.base_url, self.id)
        endpoint = Endpoint(address, http.headers.get("authorization"), encoding)
        policy = policy if retries is None else replace(policy, retries=retries)
        return SessionSocket(endpoint, policy, on_lost)

    def memory(self) -> Memory:
        """What the session's memory holds."""
        return self._transport.run(calls.memory(self.id))
