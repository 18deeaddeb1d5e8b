"""A session over one WebSocket, on an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self, Unpack

import httpx2
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

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


class AsyncSessionSocket:
    """The verbs of a session over one connection, in the order they are called; use it with `async with`.

    Tasks may share it: each gets its own answers. A lost connection raises `SocketClosed` and is not
    reopened, since only the caller knows whether what was under way should be asked again.
    """

    def __init__(self, base: httpx2.URL, session_id: str, authorization: str | None, encoding: Encoding) -> None:
        self._url = records.socket_url(base, session_id)
        self._authorization = authorization
        self._encoding: Encoding = encoding
        self._mailbox = Mailbox()
        # Fair: a task whose record came while another was reading gets its turn before that one reads on.
        self._reading = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._connection: ClientConnection | None = None
        # Weak, so that a generation nobody iterates over any more is collected, and thereby cancelled.
        self._newest: weakref.ref[AsyncSocketGeneration] | None = None
        self.session: Session | None = None
        """The session as it was when the socket was opened."""

    async def __aenter__(self) -> Self:
        self._mailbox.open("session.ready")
        try:
            self._connection = await self._stack.enter_async_context(
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
            self.session = parse(Session, (await self.receive("session.ready")).get("session"))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the server cancels what is running on it."""
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
        """Take in text (at most a megabyte a call) or messages; returns when they are in memory."""
        op_id = op_id or calls.new_op_id()
        answer = await self._ask(records.append_record(op_id, text, messages), op_id)
        return parse(Segment, answer)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        remember: bool = True,
        **sampling: Unpack[Sampling],
    ) -> AsyncSocketGeneration:
        """Continue the session, delta by delta. Begins when iteration does; leaving it early cancels."""
        fields = calls.generate_fields(prompt, messages, remember, sampling)
        generation = AsyncSocketGeneration(self, fields)
        self._newest = weakref.ref(generation)
        return generation

    async def cancel(self) -> None:
        """Stop the generation asked for last; its iterator ends soon, with `finish_reason` "cancelled"."""
        generation = self._newest() if self._newest else None
        if generation is not None:
            await generation.cancel()

    async def ping(self) -> None:
        """Wait until the server answers."""
        await self._ask({"type": "ping"}, "pong")

    async def _ask(self, record: Record, key: str) -> Record:
        self.begin(key)
        try:
            await self.send(record)
            return await self.receive(key)
        finally:
            self.end(key)

    def begin(self, key: str) -> None:
        """Keep records that answer `key`; for generations."""
        self._mailbox.open(key)

    def end(self, key: str) -> None:
        """Drop records that answer `key`."""
        self._mailbox.close(key)

    async def stop(self, key: str) -> None:
        """Cancel the generation asked for by the operation `key`, now or as soon as it has a name."""
        record = self._mailbox.cancel(key)
        if record is not None:
            await self.send(record)

    async def send(self, record: Record) -> None:
        """Write one record."""
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it with `async with`")
        try:
            await self._connection.send(records.write(record, self._encoding))
        except (WebSocketException, OSError) as error:
            raise records.socket_error(error, self._url) from error

    async def receive(self, key: str) -> Record:
        """The next record that answers `key`. Whichever task waits reads for all of them."""
        while True:
            async with self._reading:
                record = self._mailbox.take(key)
                if record is not None:
                    return record
                await self._deliver(await self._read())

    async def _read(self) -> Record:
        if self._connection is None:
            raise RuntimeError("the socket is not open; use it with `async with`")
        try:
            return records.read(await self._connection.recv())
        except (WebSocketException, OSError) as error:
            raise records.socket_error(error, self._url) from error

    async def _deliver(self, record: Record) -> None:
        reply = self._mailbox.deliver(record)
        if reply is not None:
            await self.send(reply)


class AsyncSocketGeneration:
    """The deltas of one generation; `result` is the whole of it once iteration has ended."""

    def __init__(self, socket: AsyncSessionSocket, fields: Record) -> None:
        self._socket = socket
        self._op_id = calls.new_op_id()
        self._deltas = self._run(fields)
        self.result: Generation | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationDelta:
        return await anext(self._deltas)

    async def cancel(self) -> None:
        """Stop it; may be called from another task."""
        if self.result is None:
            await self._socket.stop(self._op_id)

    async def close(self) -> None:
        """Leave it; cancels it unless it has ended."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, fields: Record) -> AsyncGenerator[GenerationDelta, None]:
        self._socket.begin(self._op_id)
        try:
            await self._socket.send(records.generate_record(self._op_id, fields))
            while True:
                record = await self._socket.receive(self._op_id)
                event = read_record(str(record.get("type")), record)
                if isinstance(event, GenerationDelta):
                    yield event
                elif isinstance(event, GenerationCompleted):
                    self.result = event.generation
                    return
        except (GeneratorExit, asyncio.CancelledError):
            # A connection that is gone has cancelled it already.
            with suppress(PalimpsestError):
                await self._socket.stop(self._op_id)
            raise
        finally:
            self._socket.end(self._op_id)
