"""A session over a WebSocket, synchronously."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self, Unpack

from websockets.exceptions import WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from palimpsest import calls, records
from palimpsest.errors import ApiError, PalimpsestError, SocketClosed
from palimpsest.mailbox import Mailbox
from palimpsest.records import Endpoint, Record
from palimpsest.retry import Repeat, RetryPolicy
from palimpsest.socket_generation import SocketGeneration
from palimpsest.types import Message, Sampling, Segment, Session
from palimpsest.wire import parse


class SessionSocket:
    """The verbs of a session, in the order they are called; use it as a context manager.

    Threads may share it: each gets its own answers. A lost connection is replaced: what was not acknowledged is
    sent again and applied once, and generations go on where they stood. `SocketClosed` or `ConnectionFailed` is
    raised when that does not succeed within the retries, or makes no sense; the next call tries again.
    `on_lost` is told of every lost connection before it is replaced.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        policy: RetryPolicy,
        on_lost: Callable[[SocketClosed], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._policy = policy
        self._on_lost = on_lost
        self._mailbox = Mailbox()
        # Guards the mailbox; told of every record that came.
        self._changed = threading.Condition()
        # Held while an operation is noted and sent, and while a connection is replaced, so that each operation is
        # sent once on each connection. Taken before `_changed`, never after it.
        self._sending = threading.Lock()
        self._reading = False
        self._left = True
        self._connection: ClientConnection | None = None
        self._stack = ExitStack()
        # Weak, so that a generation nobody iterates over any more is collected, and thereby cancelled.
        self._newest: weakref.ref[SocketGeneration] | None = None
        self.session: Session | None = None
        """The session as it was when the newest connection was made."""

    def __enter__(self) -> Self:
        self._left = False
        attempts = self._policy.attempts(Repeat.ALWAYS)
        while True:
            try:
                with self._sending:
                    self._open()
                return self
            except PalimpsestError as error:
                time.sleep(attempts.after(error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server stops what is running on it."""
        self._left = True
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
        """Take in text (at most a megabyte a call) or messages; returns when they cannot be lost any more."""
        op_id = op_id or calls.new_op_id()
        answer = self._ask(records.append_record(op_id, text, messages), op_id)
        return parse(Segment, answer)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        op_id: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> SocketGeneration:
        """Continue the session, delta by delta. Begins when iteration does; leaving it early cancels.

        With an `op_id` that was used before, the same generation is told again, and gone on with if it broke off.
        """
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        generation = SocketGeneration(self, op_id or calls.new_op_id(), fields)
        self._newest = weakref.ref(generation)
        return generation

    def cancel(self) -> None:
        """Stop the generation asked for last; its iterator ends soon, with `finish_reason` "cancelled"."""
        generation = self._newest() if self._newest else None
        if generation is not None:
            generation.cancel()

    def ping(self) -> None:
        """Wait until the server answers."""
        self._ask({"type": "ping"}, calls.new_op_id())

    def _ask(self, record: Record, key: str) -> Record:
        try:
            self.post(key, record)
            return self.receive(key)
        finally:
            self.end(key)

    def post(self, key: str, record: Record) -> None:
        """Send a record and keep what answers it under `key`; for generations."""
        with self._sending:
            with self._changed:
                self._mailbox.open(key, record)
            self._write(record)

    def end(self, key: str) -> None:
        """Drop what answers `key`."""
        with self._changed:
            self._mailbox.close(key)

    def stop(self, key: str) -> None:
        """Cancel the generation asked for by the operation `key`, now or as soon as it has a name."""
        with self._changed:
            record = self._mailbox.cancel(key)
        if record is not None:
            self._write(record)

    def receive(self, key: str) -> Record:
        """The next record that answers `key`, over as many connections as it takes."""
        attempts = self._policy.attempts(Repeat.ALWAYS)
        failure: PalimpsestError | None = None
        while True:
            try:
                if failure is not None:
                    self._recover(key, failure)
                return self._next(key)
            except PalimpsestError as error:
                failure = error
                time.sleep(attempts.after(error))

    def _next(self, key: str) -> Record:
        """Whichever thread waits reads for all of them."""
        while True:
            with self._changed:
                while (record := self._mailbox.take(key)) is None and self._reading:
                    self._changed.wait()
                if record is not None:
                    return record
                self._reading = True
            try:
                self._deliver(self._read(self._open_connection()))
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()

    def _deliver(self, record: Record) -> None:
        with self._changed:
            reply = self._mailbox.deliver(record)
        if reply is not None:
            self._write(reply)

    def _recover(self, key: str, failure: PalimpsestError) -> None:
        """Connect again unless another thread has, or ask again on this connection what failed there."""
        with self._sending:
            if self._left:
                raise failure
            if self.closed:
                if self._on_lost is not None and isinstance(failure, SocketClosed):
                    self._on_lost(failure)
                self._open()
            elif isinstance(failure, ApiError) and failure.status is None:
                with self._changed:
                    record = self._mailbox.again(key)
                self._write(record)

    def _open(self) -> None:
        """Connect, and send what has no whole answer yet. `_sending` is held."""
        self._stack.close()
        with self._endpoint.errors(), ExitStack() as stack:
            connection = stack.enter_context(connect(self._endpoint.url, **self._endpoint.options()))
            self.session = records.greeting(self._read(connection))
            with self._changed:
                unanswered = self._mailbox.reconnect()
            for record in unanswered:
                connection.send(records.write(record, self._endpoint.encoding))
            self._connection, self._stack = connection, stack.pop_all()
        if self._left:
            self._stack.close()

    def _open_connection(self) -> ClientConnection:
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it as a context manager")
        return self._connection

    def _read(self, connection: ClientConnection) -> Record:
        with self._endpoint.errors():
            return records.read(connection.recv())

    def _write(self, record: Record) -> None:
        # Whoever waits for the answer notices that the connection is gone, and sees to a new one.
        with suppress(WebSocketException, OSError):
            self._open_connection().send(records.write(record, self._endpoint.encoding))
