"""How far the events of a generation have been told, over however many connections. No I/O."""

from __future__ import annotations

from palimpsest.errors import ConnectionFailed, NotFound, NotResumable, PalimpsestError, StreamBroken, UnexpectedAnswer
from palimpsest.types import GenerationDelta, GenerationEvent, GenerationStarted


class Telling:
    """The generation being told and the number of the newest event that came; -1 before the first."""

    def __init__(self, generation_id: str | None = None, after: int = -1) -> None:
        self.generation_id = generation_id
        self.after = after
        self._begun = False

    def take_event(self, event: GenerationEvent) -> bool:
        """As `take`: 0 is the number of the start, one more than its index that of a delta."""
        match event:
            case GenerationStarted():
                return self.take(event.generation_id, 0)
            case GenerationDelta():
                return self.take(event.generation_id, event.index + 1)
        return self.take(event.generation.id, None)

    def take(self, generation_id: str, number: int | None) -> bool:
        """Count an event; False when it came before. Raises `UnexpectedAnswer` when some between are missing."""
        self.generation_id = generation_id
        self._begun = True
        if number is None:
            return True
        if number > self.after + 1:
            raise UnexpectedAnswer(f"events {self.after + 1} to {number - 1} of {generation_id} did not come")
        fresh = number > self.after
        self.after = max(self.after, number)
        return fresh

    def explain(self, error: PalimpsestError) -> PalimpsestError:
        """What a failed connection means to somebody who was told a part already; else the error as it is."""
        if not self._begun:
            return error
        if (
            isinstance(error, NotFound) and error.status is not None
        ):  # without one it came inside the stream: it had not broken
            return self.not_resumable(error)
        return self.broken_off(error) if isinstance(error, ConnectionFailed) else error

    def broken_off(self, cause: ConnectionFailed | None = None) -> StreamBroken:
        """A stream that ended without saying how: the connection was cut, or the server died."""
        why = f" ({cause})" if cause else ""
        how = f"; `resume({self.generation_id!r}, after={self.after})` goes on with it" if self.generation_id else ""
        return StreamBroken(
            f"the stream ended before the generation did{why}{how}", generation_id=self.generation_id, after=self.after
        )

    def not_resumable(self, cause: NotFound) -> NotResumable:
        """The server does not know the generation any more."""
        return NotResumable(
            f"the stream broke and {self.generation_id} cannot be taken up again ({cause}): what is generated with "
            "remember=False leaves no trace, the rest is kept for a day and as long as its session",
            generation_id=self.generation_id,
            after=self.after,
        )
