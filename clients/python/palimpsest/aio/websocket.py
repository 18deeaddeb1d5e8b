"""A session over a WebSocket, on an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

from palimpsest import calls, records
from palimpsest.aio.socket_generation import AsyncSocketGeneration
from palimpsest.errors import ApiError, PalimpsestError, SocketClosed
from palimpsest.mailbox import Mailbox
from palimpsest.records import Endpoint, Record
from palimpsest.retry import Repeat, RetryPolicy
from palimpsest.types import Message, Sampling, Segment, Session
from palimpsest.wire import parse


class AsyncSessionSocket:
    """The verbs of a session, in the order they are called; use it with `async with`.

    Tasks may share it: each gets its own answers. A lost connection is replaced: what was not acknowledged is
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
        # Fair: a task whose record came while another was reading gets its turn before that one reads on.
        self._reading = asyncio.Lock()
        # Held while an operation is noted and sent, and while a connection is replaced, so that each operation is
        # sent once on each connection.
        self._sending = asyncio.Lock()
        self._left = True
        self._connection: ClientConnection | None = None
        self._stack = AsyncExitStack()
        # Weak, so that a generation nobody iterates over any more is collected, and thereby cancelled.
        self._newest: weakref.ref[AsyncSocketGeneration] | None = None
        self.session: Session | None = None
        """The session as it was when the newest connection was made."""

    async def __aenter__(self) -> Self:
        self._left = False
        attempts = self._policy.attempts(Repeat.ALWAYS)
        while True:
            try:
                async with self._sending:
                    await self._open()
                return self
            except PalimpsestError as error:
                await asyncio.sleep(attempts.after(error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the server stops what is running on it."""
        self._left = True
        await self._stack.aclose()

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be gone."""
        return self._connection is None or self._connection.protocol.state is not State.OPEN

    async def append(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        op_id: str | None = None,
    ) -> Segment:
        """Take in text (at most a megabyte a call) or messages; returns when they cannot be lost any more."""
        op_id = op_id or calls.new_op_id()
        answer = await self._ask(records.append_record(op_id, text, messages), op_id)
        return parse(Segment, answer)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        op_id: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncSocketGeneration:
        """Continue the session, delta by delta. Begins when iteration does; leaving it early cancels.

        With an `op_id` that was used before, the same generation is told again, and gone on with if it broke off.
        """
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        generation = AsyncSocketGeneration(self, op_id or calls.new_op_id(), fields)
        self._newest = weakref.ref(generation)
        return generation

    async def cancel(self) -> None:
        """Stop the generation asked for last; its iterator ends soon, with `finish_reason` "cancelled"."""
        generation = self._newest() if self._newest else None
        if generation is not None:
            await generation.cancel()

    async def ping(self) -> None:
        """Wait until the server answers."""
        await self._ask({"type": "ping"}, calls.new_op_id())

    async def _ask(self, record: Record, key: str) -> Record:
        try:
            await self.post(key, record)
            return await self.receive(key)
        finally:
            self.end(key)

    async def post(self, key: str, record: Record) -> None:
        """Send a record and keep what answers it under `key`; for generations."""
        async with self._sending:
            self._mailbox.open(key, record)
            await self._write(record)

    def end(self, key: str) -> None:
        """Drop what answers `key`."""
        self._mailbox.close(key)

    async def stop(self, key: str) -> None:
        """Cancel the generation asked for by the operation `key`, now or as soon as it has a name."""
        record = self._mailbox.cancel(key)
        if record is not None:
            await self._write(record)

    async def receive(self, key: str) -> Record:
        """The next record that answers `key`, over as many connections as it takes."""
        attempts = self._policy.attempts(Repeat.ALWAYS)
        failure: PalimpsestError | None = None
        while True:
            try:
                if failure is not None:
                    await self._recover(key, failure)
                return await self._next(key)
            except PalimpsestError as error:
                failure = error
                await asyncio.sleep(attempts.after(error))

    async def _next(self, key: str) -> Record:
        """Whichever task waits reads for all of them."""
        while True:
            async with self._reading:
                record = self._mailbox.take(key)
                if record is not None:
                    return record
                await self._deliver(await self._read(self._open_connection()))

    async def _deliver(self, record: Record) -> None:
        reply = self._mailbox.deliver(record)
        if reply is not None:
            await self._write(reply)

    async def _recover(self, key: str, failure: PalimpsestError) -> None:
        """Connect again unless another task has, or ask again on this connection what failed there."""
        async with self._sending:
            if self._left:
                raise failure
            if self.closed:
                if self._on_lost is not None and isinstance(failure, SocketClosed):
                    self._on_lost(failure)
                await self._open()
            elif isinstance(failure, ApiError) and failure.status is None:
                await self._write(self._mailbox.again(key))

    async def _open(self) -> None:
        """Connect, and send what has no whole answer yet. `_sending` is held."""
        await self._stack.aclose()
        with self._endpoint.errors():
            async with AsyncExitStack() as stack:
                connection = await stack.enter_async_context(connect(self._endpoint.url, **self._endpoint.options()))
                self.session = records.greeting(await self._read(connection))
                for record in self._mailbox.reconnect():
                    await connection.send(records.write(record, self._endpoint.encoding))
                self._connection, self._stack = connection, stack.pop_all()
        if self._left:
            await self._stack.aclose()

    def _open_connection(self) -> ClientConnection:
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it with `async with`")
        return self._connection

    async def _read(self, connection: ClientConnection) -> Record:
        with self._endpoint.errors():
            return records.read(await connection.recv())

    async def _write(self, record: Record) -> None:
        # Whoever waits for the answer notices that the connection is gone, and sees to a new one.
        with suppress(WebSocketException, OSError):
            await self._open_connection().send(records.write(record, self._endpoint.encoding))
