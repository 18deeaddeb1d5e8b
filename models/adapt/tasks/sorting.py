"""Sorting symbols by their frequency in a long sequence whose distribution drifts (∞-former, arXiv 2109.00301, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.adapt.tasks.base import IGNORED, Batch, check_length, check_settings, draw


@dataclass(frozen=True)
class Sorting:
    """`x1 x2 ... END s1 s2 ...`: the symbols from the most to the least frequent, each asked for in turn.

    Symbols are drawn from a distribution that moves linearly from a random one to another; weights of both are whole
    numbers from 1 to 9, as in the authors' generator. Of symbols that are equally frequent, the one seen first comes first.
    The sequence of `length` tokens includes END and all symbols of the answer but the last.
    """

    symbols: int = 20

    def __post_init__(self) -> None:
        check_settings(self, symbols=2)

    @property
    def vocab_size(self) -> int:
        """Symbols and END."""
        return self.symbols + 1

    @property
    def chance(self) -> float:
        """A symbol that has not been named yet is guessed: the mean over the places of the answer."""
        return sum(1 / left for left in range(1, self.symbols + 1)) / self.symbols

    @property
    def shortest(self) -> int:
        """One token to be counted, END, and the answer."""
        return 1 + self.symbols

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`."""
        check_length(self, length)
        counted = length - self.symbols
        drawn = self._draw(generator, batch, counted)  # (B, counted)
        order = self._order(drawn)
        end = torch.full((batch, 1), self.symbols)
        tokens = torch.cat((drawn, end, order[:, :-1]), dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, counted:] = order
        return Batch(tokens, targets)

    def _draw(self, generator: Generator, batch: int, count: int) -> Tensor:
        first, last = (draw(generator, batch, self.symbols, 1, 10).float() for _ in range(2))
        first, last = F.normalize(first, p=1, dim=1), F.normalize(last, p=1, dim=1)
        # A draw from the mixture at place j is one from `last` with probability (j + 1) / n, otherwise from `first`.
        late = torch.rand(batch, count, generator=generator) < torch.arange(1, count + 1) / count
        of_first = torch.multinomial(first, count, replacement=True, generator=generator)
        of_last = torch.multinomial(last, count, replacement=True, generator=generator)
        return torch.where(late, of_last, of_first)

    def _order(self, drawn: Tensor) -> Tensor:
        counts = torch.zeros(len(drawn), self.symbols, dtype=torch.int64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn))
        length = drawn.shape[1]
        places = torch.arange(length).expand_as(drawn)
        first = torch.full_like(counts, length).scatter_reduce(1, drawn, places, reduce="amin")
        return (counts * (length + 1) - first).argsort(dim=1, descending=True, stable=True)
