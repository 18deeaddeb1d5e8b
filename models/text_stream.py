"""Text from tokens as they are sampled."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.errors import TokenizerError

if TYPE_CHECKING:
    from models.tokenizer import Tokenizer


class TextStream:
    """Turns token ids into text that is certain: whole characters, and nothing that may begin a stop string.

    `stopped` turns true when a stop string is complete; the text before it has been returned, and nothing
    more will be. Special tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise TokenizerError("a stop string must not be empty")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one token; the text that became certain by it, often none."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._tokenizer.token_bytes(token_id))
        return self._release(keep=True)

    def finish(self) -> str:
        """The rest. Bytes that never became a character are shown as U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(keep=False)

    def _release(self, *, keep: bool) -> str:
        """Cut at the stop string that was complete first, the longest if several end there."""
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            sure = self._held[: min(ends)[1]]
            self._held = ""
            return sure
        held = self._beginning_of_stop() if keep else 0
        cut = len(self._held) - held
        sure, self._held = self._held[:cut], self._held[cut:]
        return sure

    def _beginning_of_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
