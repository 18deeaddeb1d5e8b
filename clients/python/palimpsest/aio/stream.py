"""The events of one generation over HTTP, on an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import httpx2

from palimpsest.aio.transport import AsyncTransport
from palimpsest.calls import Call
from palimpsest.errors import ConnectionFailed
from palimpsest.sse import broken_off, read_event
from palimpsest.types import GenerationCompleted, GenerationEvent


class AsyncEventStream:
    """An asynchronous iterator of events and context manager: leaving it early cancels the generation.

    Raises `StreamBroken` when the events end without `GenerationCompleted`.
    """

    def __init__(self, transport: AsyncTransport, call: Call[None]) -> None:
        self._events = _events(transport, call)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        return await anext(self._events)

    async def close(self) -> None:
        """Stop reading; the server cancels what is still being generated."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _events(transport: AsyncTransport, call: Call[None]) -> AsyncGenerator[GenerationEvent, None]:
    try:
        async with transport.stream(call) as response:
            async for event in httpx2.EventSource(response):
                record = read_event(event)
                if record is not None:
                    yield record
                if isinstance(record, GenerationCompleted):
                    return
    except ConnectionFailed as error:
        raise broken_off() from error
    raise broken_off()
