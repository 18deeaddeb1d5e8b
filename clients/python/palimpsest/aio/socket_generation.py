"""One generation on a WebSocket, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from palimpsest.records import Record, generate_record
from palimpsest.socket_generation import Asked
from palimpsest.sse import read_record
from palimpsest.types import Generation, GenerationCompleted, GenerationDelta

if TYPE_CHECKING:
    from palimpsest.aio.websocket import AsyncSessionSocket


class AsyncSocketGeneration:
    """The deltas of one generation; `result` is the whole of it once iteration has ended."""

    def __init__(self, socket: AsyncSessionSocket, op_id: str, fields: Record) -> None:
        self._socket = socket
        self._asked = Asked(op_id)
        self._deltas = _read(socket, self._asked, fields)

    @property
    def result(self) -> Generation | None:
        """The whole generation; None until it has ended."""
        return self._asked.result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationDelta:
        return await anext(self._deltas)

    async def cancel(self) -> None:
        """Stop it; may be called from another task."""
        self._asked.unwanted = True
        if self.result is None:
            await self._socket.stop(self._asked.op_id)

    async def close(self) -> None:
        """Leave it; cancels it unless it has ended."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _read(socket: AsyncSessionSocket, asked: Asked, fields: Record) -> AsyncGenerator[GenerationDelta, None]:
    try:
        await socket.post(asked.op_id, generate_record(asked.op_id, fields))
        if asked.unwanted:
            await socket.stop(asked.op_id)
        while True:
            record = await socket.receive(asked.op_id)
            event = read_record(str(record.get("type")), record)
            if isinstance(event, GenerationDelta):
                yield event
            elif isinstance(event, GenerationCompleted):
                asked.result = event.generation
                return
    except (GeneratorExit, asyncio.CancelledError):
        await socket.stop(asked.op_id)
        raise
    finally:
        socket.end(asked.op_id)
