"""One generation as a client hears it, in one stream or in several."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from bench.faults.wire import Event, Fields, NoAnswer


class WrongStory(Exception):
    """A stream told something twice, left something out, or told it otherwise than before."""


class Lost(Exception):
    """What was acknowledged, or told in part, is not there any more."""


class Hearing:
    """Joins what several streams tell. With `leave_after` it goes away once, after so many events behind the first."""

    def __init__(self, *, leave_after: int | None = None) -> None:
        self.generation_id: str | None = None
        self.last = -1
        """Number of the newest event."""
        self.text = ""
        self._leave_after = leave_after

    async def listen(self, events: AsyncGenerator[Event, None]) -> Fields:
        """The finished generation. Raises `NoAnswer` when the stream ends before it, and `WrongStory`."""
        async for event in events:
            self._take(event)
            if event.kind == "generation.completed":
                return self._completed(event)
            if self._leave_after is not None and event.number >= self._leave_after:
                self._leave_after = None
                raise NoAnswer("left in the middle")
        raise NoAnswer("the stream ended before the generation did")

    def _take(self, event: Event) -> None:
        if self.generation_id not in (None, event.generation_id):
            raise WrongStory(f"{self.generation_id} became {event.generation_id}")
        if event.number != self.last + 1:
            raise WrongStory(f"event {event.number} came behind event {self.last}")
        self.generation_id, self.last = event.generation_id, event.number
        if event.kind == "generation.delta":
            self.text += event.fields["text"]

    def _completed(self, event: Event) -> Fields:
        generation: Fields = event.fields["generation"]
        if generation["text"] != self.text:
            raise WrongStory(f"heard {self.text!r}, and then that it was {generation['text']!r}")
        return generation
