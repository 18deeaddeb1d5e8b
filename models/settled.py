"""Where arriving text may be cut so that its tokens do not depend on how it arrived.

A boundary lies before a single space between two non-blank characters, and behind a line end between two.
No token of the tokenizers served here reaches across one, so text can be encoded piece by piece. A run
without a boundary is cut by force every `LONGEST_RUN` characters, counted from where the run begins. All
of that depends on the text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_RUN = 4096
"""Characters in a run before it is cut by force."""

_SPACE = r"(?<=\S)(?= \S)"
_LINE_END = r"(?<=\S\n)(?=\S)"


@dataclass(frozen=True)
class Cut:
    """A place in a text where it may be cut. Tokens could have reached across a `forced` one."""

    at: int
    forced: bool


class Cutter:
    """Finds the cuts of a text. A kind of boundary that the vocabulary has tokens across can be switched
    off.
    """

    def __init__(self, *, spaces: bool = True, line_ends: bool = True) -> None:
        kinds = [pattern for pattern, wanted in ((_SPACE, spaces), (_LINE_END, line_ends)) if wanted]
        self._boundary = re.compile("|".join(kinds) or r"(?!)")

    def cuts(self, text: str) -> Iterator[Cut]:
        """All cuts that are certain, in order. What follows the last one is still open."""
        start = 0
        for match in self._boundary.finditer(text):
            at = match.start()
            while at - start > LONGEST_RUN:
                start += LONGEST_RUN
                yield Cut(start, forced=True)
            # A line end that begins a run has its left neighbour in the run before, which may be gone by now.
            if at > start and not (at == start + 1 and text[start] == "\n"):
                start = at
                yield Cut(start, forced=False)
        while len(text) - start > LONGEST_RUN:
            start += LONGEST_RUN
            yield Cut(start, forced=True)

    def split(self, text: str) -> tuple[str, str]:
        """The part that is settled, and the part that text to come could still change."""
        last = 0
        for cut in self.cuts(text):
            last = cut.at
        return text[:last], text[last:]

    def forced_pieces(self, text: str) -> Iterator[str]:
        """The text cut at its forced cuts only: the pieces that have to be encoded one by one."""
        start = 0
        if len(text) > LONGEST_RUN:
            for cut in self.cuts(text):
                if cut.forced:
                    yield text[start : cut.at]
                    start = cut.at
        yield text[start:]
