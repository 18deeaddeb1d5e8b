"""The events of one generation over HTTP, synchronously."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Self

import httpx2

from palimpsest.calls import Call
from palimpsest.errors import ConnectionFailed
from palimpsest.sse import broken_off, read_event
from palimpsest.transport import Transport
from palimpsest.types import GenerationCompleted, GenerationEvent


class EventStream:
    """An iterator of events that is also a context manager: leaving it early cancels the generation.

    Raises `StreamBroken` when the events end without `GenerationCompleted`.
    """

    def __init__(self, transport: Transport, call: Call[None]) -> None:
        self._events = _events(transport, call)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationEvent:
        return next(self._events)

    def close(self) -> None:
        """Stop reading; the server cancels what is still being generated."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _events(transport: Transport, call: Call[None]) -> Generator[GenerationEvent, None, None]:
    try:
        with transport.stream(call) as response:
            for event in httpx2.EventSource(response):
                record = read_event(event)
                if record is not None:
                    yield record
                if isinstance(record, GenerationCompleted):
                    return
    except ConnectionFailed as error:
        raise broken_off() from error
    raise broken_off()
