"""The text that the demo reads: a narrative made from a seed, with facts planted at even depths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from models.probes import Needle, plant, prose

CHARACTERS_A_TOKEN = 5
"""A little more than such prose has with the default model (4.7), so that the text is never too short."""
PIECE = 4_000
"""Characters of an ordinary append. They end anywhere, also within words: that changes nothing."""
INTERRUPTED = 40_000
"""Characters of the append that is broken off: the server journals a streamed body every 16,384 characters, and the
crash has to come when some of it is journaled and some was never sent."""
_SHORTEST = 50_000
CUES = (
    "The safe opens with the code",
    "The telephone number of the hotel is",
    "The prize went to lottery ticket",
    "The engine of the night train bears the plate",
    "The treasure in the cellar is worth exactly",
    "The prisoner was known only as convict",
    "The library keeps the oldest book on shelf",
    "The anniversary bell was cast in the year",
    "The patient was entered in the file as case",
)
"""Each fact has words of its own before its number, and its number a first digit of its own. With one wording for all and
names to tell them apart, the default model mixes them up even when it sees the whole text at once: that would measure the
model, not the memory. Hence at most nine facts."""


@dataclass(frozen=True)
class Story:
    """The whole text, and how it is cut: `before`, the append that is broken off, `after`."""

    facts: Sequence[Needle]
    before: Sequence[str]
    interrupted: str
    after: Sequence[str]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join([*self.before, self.interrupted, *self.after])


def write_story(tokens: int, facts: int, seed: int) -> Story:
    """A text of at least `tokens` tokens of an English vocabulary, and never under 50,000 characters."""
    source = random.Random(seed)
    firsts = source.sample(range(1, 10), facts)
    hidden = [_fact(source, cue, first) for cue, first in zip(source.sample(CUES, facts), firsts, strict=True)]
    narrative = prose(source, max(_SHORTEST, tokens * CHARACTERS_A_TOKEN) + 1_000)
    depths = [(index + 0.5) / facts for index in range(facts)]
    text = plant(narrative, [fact.sentence for fact in hidden], depths)
    start = (len(text) - INTERRUPTED) // 2
    return Story(
        facts=hidden,
        before=_pieces(text[:start]),
        interrupted=text[start : start + INTERRUPTED],
        after=_pieces(text[start + INTERRUPTED :]),
    )


def _fact(source: random.Random, cue: str, first: int) -> Needle:
    number = 1000 * first + source.randrange(1000)
    return Needle(sentence=f"{cue} {number}.", question=cue, answer=f" {number}")


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
