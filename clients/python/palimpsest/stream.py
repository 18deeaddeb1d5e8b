"""The events of one generation over HTTP, synchronously."""

from __future__ import annotations

import time
from collections.abc import Generator
from types import TracebackType
from typing import Self

import httpx2

from palimpsest.calls import Call, resume
from palimpsest.errors import PalimpsestError
from palimpsest.sse import read_event
from palimpsest.telling import Telling
from palimpsest.transport import Transport
from palimpsest.types import GenerationCompleted, GenerationEvent


class EventStream:
    """An iterator of events that is also a context manager: leaving it early stops the generation.

    A connection that breaks is replaced, and the events go on where they stood: none is lost, none comes twice.
    Raises `StreamBroken` when that does not succeed. What was stopped or broke off can be taken up again with
    `resume`, unless it was asked for with `remember=False`.
    """

    def __init__(self, transport: Transport, call: Call[None], telling: Telling | None = None) -> None:
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationEvent:
        return next(self._events)

    def close(self) -> None:
        """Stop reading; the server stops generating after the token it is at."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _events(transport: Transport, call: Call[None], telling: Telling) -> Generator[GenerationEvent, None, None]:
    attempts = transport.attempts(call.repeat)
    while True:
        try:
            with transport.open(call) as response:
                for event in httpx2.EventSource(response):
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
            time.sleep(attempts.after(telling.explain(error)))
        if telling.generation_id is not None:
            call = resume(telling.generation_id, telling.after)
