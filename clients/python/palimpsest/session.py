"""One session, synchronously."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack

from palimpsest import calls
from palimpsest.bodies import TextSource, pieces, rewinder
from palimpsest.calls import Wait
from palimpsest.records import Encoding
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
    ) -> Segment:
        """Take in text or messages. With the same `op_id` it is applied once, however often it is sent.

        `wait="journal"` returns as soon as it cannot be lost, before it is in memory.
        """
        return self._transport.run(calls.append(self.id, text, messages, op_id, wait))

    def append_stream(self, source: TextSource, *, op_id: str | None = None, wait: Wait = "memory") -> Segment:
        """Take in a file or an iterable of text (str, or UTF-8 bytes), of any size, in one request.

        Sent again after a failure only if it is a file that can be rewound.
        """
        rewind = rewinder(source)

        def body() -> Iterable[bytes]:
            if rewind:
                rewind()
            return pieces(source)

        call = calls.append_stream(self.id, op_id, wait, rewindable=rewind is not None)
        return self._transport.run(call, body)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Continue the session and wait for the whole text. `remember=False` leaves no trace in it."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return self._transport.run(calls.generate(self.id, fields))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> EventStream:
        """The same, event by event as the text is made. Leaving the stream cancels the generation."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        return EventStream(self._transport, calls.stream(self.id, fields))

    def connect(self, encoding: Encoding = "msgpack") -> SessionSocket:
        """A WebSocket to this session, as a context manager."""
        http = self._transport.http
        return SessionSocket(http.base_url, self.id, http.headers.get("authorization"), encoding)

    def memory(self) -> Memory:
        """What the session's memory holds."""
        return self._transport.run(calls.memory(self.id))
