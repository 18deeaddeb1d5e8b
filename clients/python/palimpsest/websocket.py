"""A session over one WebSocket, synchronously."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self, Unpack

import httpx2
from websockets.exceptions import WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from palimpsest import calls, records
from palimpsest.errors import PalimpsestError
from palimpsest.records import Encoding, Mailbox, Record
from palimpsest.sse import read_record
from palimpsest.types import (
    Generation,
    GenerationCompleted,
    GenerationDelta,
    Message,
    Sampling,
    Segment,
    Session,
)
from palimpsest.wire import parse


class SessionSocket:
    """The verbs of a session over one connection, in the order they are called; use it as a context manager.

    Threads may share it: each gets its own answers. A lost connection raises `SocketClosed` and is not
    reopened, since only the caller knows whether what was under way should be asked again.
    """

    def __init__(self, base: httpx2.URL, session_id: str, authorization: str | None, encoding: Encoding) -> None:
        self._url = records.socket_url(base, session_id)
        self._authorization = authorization
        self._encoding: Encoding = encoding
        self._mailbox = Mailbox()
        self._changed = threading.Condition()
        self._reading = False
        self._stack = ExitStack()
        self._connection: ClientConnection | None = None
        # Weak, so that a generation nobody iterates over any more is collected, and thereby cancelled.
        self._newest: weakref.ref[SocketGeneration] | None = None
        self.session: Session | None = None
        """The session as it was when the socket was opened."""

    def __enter__(self) -> Self:
        self._mailbox.open("session.ready")
        try:
            self._connection = self._stack.enter_context(
                connect(
                    self._url,
                    subprotocols=[records.SUBPROTOCOLS[self._encoding]],
                    additional_headers={"authorization": self._authorization} if self._authorization else {},
                    compression=None,
                    max_size=records.MAX_FRAME,
                )
            )
        except (WebSocketException, OSError) as error:
            raise records.socket_error(error, self._url) from error
        try:
            self.session = parse(Session, self.receive("session.ready").get("session"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server cancels what is running on it."""
        self._stack.close()

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be gone."""
        return self._connection is None or self._connection.protocol.state is not State.OPEN

    def append(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        op_id: str | None = None,
    ) -> Segment:
        """Take in text (at most a megabyte a call) or messages; returns when they are in memory."""
        op_id = op_id or calls.new_op_id()
        answer = self._ask(records.append_record(op_id, text, messages), op_id)
        return parse(Segment, answer)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> SocketGeneration:
        """Continue the session, delta by delta. Begins when iteration does; leaving it early cancels."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        generation = SocketGeneration(self, fields)
        self._newest = weakref.ref(generation)
        return generation

    def cancel(self) -> None:
        """Stop the generation asked for last; its iterator ends soon, with `finish_reason` "cancelled"."""
        generation = self._newest() if self._newest else None
        if generation is not None:
            generation.cancel()

    def ping(self) -> None:
        """Wait until the server answers."""
        self._ask({"type": "ping"}, "pong")

    def _ask(self, record: Record, key: str) -> Record:
        self.begin(key)
        try:
            self.send(record)
            return self.receive(key)
        finally:
            self.end(key)

    def begin(self, key: str) -> None:
        """Keep records that answer `key`; for generations."""
        with self._changed:
            self._mailbox.open(key)

    def end(self, key: str) -> None:
        """Drop records that answer `key`."""
        with self._changed:
            self._mailbox.close(key)

    def stop(self, key: str) -> None:
        """Cancel the generation asked for by the operation `key`, now or as soon as it has a name."""
        with self._changed:
            record = self._mailbox.cancel(key)
        if record is not None:
            self.send(record)

    def send(self, record: Record) -> None:
        """Write one record."""
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it as a context manager")
        try:
            self._connection.send(records.write(record, self._encoding))
        except (WebSocketException, OSError) as error:
            raise records.socket_error(error, self._url) from error

    def receive(self, key: str) -> Record:
        """The next record that answers `key`. Whichever thread waits reads for all of them."""
        while True:
            with self._changed:
                while (record := self._mailbox.take(key)) is None and self._reading:
                    self._changed.wait()
                if record is not None:
                    return record
                self._reading = True
            try:
                self._deliver(self._read())
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()

    def _read(self) -> Record:
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it as a context manager")
        try:
            return records.read(self._connection.recv())
        except (WebSocketException, OSError) as error:
            raise records.socket_error(error, self._url) from error

    def _deliver(self, record: Record) -> None:
        with self._changed:
            reply = self._mailbox.deliver(record)
        if reply is not None:
            self.send(reply)


class SocketGeneration:
    """The deltas of one generation; `result` is the whole of it once iteration has ended."""

    def __init__(self, socket: SessionSocket, fields: Record) -> None:
        self._socket = socket
        self._op_id = calls.new_op_id()
        self._deltas = self._run(fields)
        self.result: Generation | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationDelta:
        return next(self._deltas)

    def cancel(self) -> None:
        """Stop it; may be called from another thread."""
        if self.result is None:
            self._socket.stop(self._op_id)

    def close(self) -> None:
        """Leave it; cancels it unless it has ended."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, fields: Record) -> Generator[GenerationDelta, None, None]:
        self._socket.begin(self._op_id)
        try:
            self._socket.send(records.generate_record(self._op_id, fields))
            while True:
                record = self._socket.receive(self._op_id)
                event = read_record(str(record.get("type")), record)
                if isinstance(event, GenerationDelta):
                    yield event
                elif isinstance(event, GenerationCompleted):
                    self.result = event.generation
                    return
        except (GeneratorExit, KeyboardInterrupt):
            # A connection that is gone has cancelled it already.
            with suppress(PalimpsestError):
                self._socket.stop(self._op_id)
            raise
        finally:
            self._socket.end(self._op_id)
