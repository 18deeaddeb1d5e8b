"""The events of one generation over HTTP, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import httpx2

from palimpsest.aio.transport import AsyncTransport
from palimpsest.calls import Call, resume
from palimpsest.errors import PalimpsestError
from palimpsest.sse import read_event
from palimpsest.telling import Telling
from palimpsest.types import GenerationCompleted, GenerationEvent


class AsyncEventStream:
    """An asynchronous iterator of events and context manager: leaving it early stops the generation.

    A connection that breaks is replaced, and the events go on where they stood: none is lost, none comes twice.
    Raises `StreamBroken` when that does not succeed. What was stopped or broke off can be taken up again with
    `resume`, unless it was asked for with `remember=False`.
    """

    def __init__(self, transport: AsyncTransport, call: Call[None], telling: Telling | None = None) -> None:
        self._telling = telling or Telling()
        self._events = _events(transport, call, self._telling)

    @property
    def generation_id(self) -> str | None:
        """The generation's id, once it has begun."""
        return self._telling.generation_id

    @property
    def after(self) -> int:
        """The number of the newest event that came: what `resume` wants to go on behind it."""
        return self._telling.after

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        return await anext(self._events)

    async def close(self) -> None:
        """Stop reading; the server stops generating after the token it is at."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _events(
    transport: AsyncTransport, call: Call[None], telling: Telling
) -> AsyncGenerator[GenerationEvent, None]:
    attempts = transport.attempts(call.repeat)
    while True:
        try:
            async with transport.open(call) as response:
                async for event in httpx2.EventSource(response):
                    record = read_event(event)
                    if record is None or not telling.take_event(record):
                        continue
                    # The budget is for failures in a row.
                    attempts = transport.attempts(call.repeat)
                    yield record
                    if isinstance(record, GenerationCompleted):
                        return
            raise telling.broken_off()
        except PalimpsestError as error:
            await asyncio.sleep(attempts.after(telling.explain(error)))
        if telling.generation_id is not None:
            call = resume(telling.generation_id, telling.after)
