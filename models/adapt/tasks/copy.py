"""Copy: a span of symbols, filler, then the span again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from models.adapt.tasks.base import IGNORED, Batch, check_length, check_settings, draw, draw_distinct, put


@dataclass(frozen=True)
class Copy:
    """`START s1 s2 ... filler ... QUESTION s1 s2 ...`: each symbol of the span is asked for, in order.

    The symbols of a span differ from one another. `anywhere` lets the span lie anywhere before the question; otherwise the
    sequence begins with it.
    """

    span: int = 8
    symbols: int = 32
    filler: int = 8
    anywhere: bool = False

    def __post_init__(self) -> None:
        check_settings(self, span=1, symbols=self.span, filler=1)

    @property
    def vocab_size(self) -> int:
        """Symbols, filler, the start and the question."""
        return self.symbols + self.filler + 2

    @property
    def chance(self) -> float:
        """A guessed symbol."""
        return 1 / self.symbols

    @property
    def shortest(self) -> int:
        """The start, the span, the question, and the span without its last symbol."""
        return 2 * self.span + 1

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`."""
        check_length(self, length)
        start, question = self.vocab_size - 2, self.vocab_size - 1
        tokens = draw(generator, batch, length, self.symbols, self.symbols + self.filler)
        span = draw_distinct(generator, batch, self.symbols, self.span)
        begin = torch.zeros(batch, 1, dtype=torch.int64)
        if self.anywhere:
            begin = draw(generator, batch, 1, 0, length - self.shortest + 1)
        tokens.scatter_(1, begin, start)
        put(tokens, begin + torch.arange(1, self.span + 1), span)
        asked = length - self.span
        tokens[:, asked] = question
        tokens[:, asked + 1 :] = span[:, :-1]
        targets = torch.full_like(tokens, IGNORED)
        targets[:, asked:] = span
        return Batch(tokens, targets)
