"""Multi-query associative recall (Zoology, arXiv 2312.04927): pairs of key and value, then keys whose values are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from models.adapt.tasks.base import IGNORED, Batch, check_length, check_settings, draw, draw_distinct
from models.errors import ConfigError


@dataclass(frozen=True)
class Mqar:
    """`k1 v1 k2 v2 ... blank ... k2 blank k1 ...`: at each key that returns, its value is asked for.

    Keys are the lower half of the vocabulary without 0, which is the blank, values the upper half. The distance of a question
    from the pairs follows a power law with exponent `power` - 1, as in the paper (0.01 there: mostly near; 1 is uniform). With
    `noise` blanks are random symbols, as in the paper. `gap` tokens at least lie between the pairs and the questions.
    """

    pairs: int = 8
    symbols: int = 64
    power: float = 0.01
    noise: bool = False
    gap: int = 0

    def __post_init__(self) -> None:
        check_settings(self, pairs=1, symbols=2 * self.pairs + 2, gap=0)
        if not 0 < self.power <= 1:
            raise ConfigError(f"power of mqar must lie between 0 and 1, not {self.power}")

    @property
    def vocab_size(self) -> int:
        """The blank, keys and values."""
        return self.symbols

    @property
    def chance(self) -> float:
        """One of the values that were seen is guessed."""
        return 1 / self.pairs

    @property
    def shortest(self) -> int:
        """All pairs, the gap, and the questions with one place behind each."""
        return 4 * self.pairs + self.gap

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`."""
        check_length(self, length)
        half = self.symbols // 2
        keys = 1 + draw_distinct(generator, batch, half - 1, self.pairs)
        values = half + draw_distinct(generator, batch, self.symbols - half, self.pairs)
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        if self.noise:
            tokens = draw(generator, batch, length, 0, self.symbols)
        tokens[:, : 2 * self.pairs] = torch.stack((keys, values), dim=2).flatten(1)
        begin = 2 * self.pairs + self.gap
        likely = torch.arange(1, (length - begin) // 2 + 1, dtype=torch.float64) ** (self.power - 1)
        places = begin + 2 * torch.multinomial(likely.expand(batch, -1), self.pairs, generator=generator)
        targets = torch.full_like(tokens, IGNORED)
        tokens.scatter_(1, places, keys)
        targets.scatter_(1, places, values)
        return Batch(tokens, targets)
