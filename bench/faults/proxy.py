"""A TCP proxy before Redis that breaks connections at chosen commands."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from bench.faults.commands import Command, read_command

Where = Literal["before", "inside", "after"]
"""Where a connection is reset: before the command is passed on, amid it, or when its reply is there and not yet passed on."""
SCRIPTS = frozenset({"EVALSHA", "EVAL"})
_CHUNK = 1 << 16


@dataclass
class Cut:
    """Reset the connection that sends one of `names`, after `skip` of them. `reached` is set when it has happened.

    `share` says how much of the command's bytes pass before a reset `inside` of it.
    """

    where: Where
    names: frozenset[str] = SCRIPTS
    skip: int = 0
    share: float = 0.5
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, command: Command) -> bool:
        """Whether this is the command."""
        if self.reached.is_set() or command.name not in self.names:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.reached.set()
        return True


@dataclass
class _Behaviour:
    cut: Cut | None = None
    delay: float = 0.0
    mute: bool = False


class Proxy:
    """Listens on a free port of loopback, and passes everything on to `port` until told otherwise.

    As a context manager it listens from entry, and resets what is left on exit.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._behaviour = _Behaviour()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self, cut: Cut) -> None:
        """Reset one connection where `cut` says."""
        self._behaviour.cut = cut

    def delay(self, seconds: float) -> None:
        """Hold every command back for so long; 0 for no more."""
        self._behaviour.delay = seconds

    def swallow(self) -> None:
        """Half-open: accept and read, pass nothing on in either direction."""
        self._behaviour.mute = True
        for connection in self._connections:
            connection.mute = True

    def relent(self) -> None:
        """Serve new connections again. Those that were half open stay so, as they would with a peer that is gone."""
        self._behaviour.mute = False

    def reset_all(self) -> None:
        """Reset every connection there is."""
        for connection in list(self._connections):
            connection.reset()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        while self._connections:
            self.reset_all()
            await asyncio.sleep(0.01)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self._behaviour)
        self._connections.add(connection)
        try:
            # A peer that is gone or was reset ends the connection, nothing else.
            with suppress(OSError, ValueError):
                await connection.run(self._upstream)
        finally:
            connection.reset()
            self._connections.discard(connection)


class _Connection:
    """One client, and its own connection to Redis."""

    def __init__(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, behaviour: _Behaviour) -> None:
        self._reader, self._client, self._behaviour = reader, client, behaviour
        self._redis: asyncio.StreamWriter | None = None
        self.mute = behaviour.mute
        self._doomed = False

    async def run(self, port: int) -> None:
        """Pass on in both directions until one side ends."""
        replies, self._redis = await asyncio.open_connection("127.0.0.1", port)
        answering = asyncio.create_task(self._answer(replies))
        try:
            while (command := await read_command(self._reader)) is not None:
                if not self.mute:
                    await self._pass_on(command, self._redis)
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    def reset(self) -> None:
        """End both sides with RST, as a cable that is cut never would, but a peer that restarts does."""
        for writer in (self._client, self._redis):
            if writer is not None:
                connection: socket.socket = writer.get_extra_info("socket")
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _pass_on(self, command: Command, redis: asyncio.StreamWriter) -> None:
        if self._behaviour.delay:
            await asyncio.sleep(self._behaviour.delay)
        cut = self._behaviour.cut
        if cut is None or not cut.strikes(command):
            redis.write(command.raw)
            await redis.drain()
            return
        match cut.where:
            case "before":
                self.reset()
            case "inside":
                redis.write(command.raw[: max(1, int(len(command.raw) * cut.share))])
                await redis.drain()
                self.reset()
            case "after":
                self._doomed = True
                redis.write(command.raw)
                await redis.drain()

    async def _answer(self, replies: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while content := await replies.read(_CHUNK):
                if self._doomed:
                    break
                if not self.mute:
                    self._client.write(content)
                    await self._client.drain()
        if not self.mute:
            self.reset()
