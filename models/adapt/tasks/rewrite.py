"""Rewrite: keys are stored again with other values, and the newest value is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from models.adapt.tasks.base import IGNORED, Batch, check_length, check_settings, draw_distinct, put


@dataclass(frozen=True)
class Rewrite:
    """`k1 v5 blank k2 v3 ... k1 v2 ... gap ... k2 v3 k1 v2`: every key is stored `times` times, then asked for.

    The values of one key differ from one another. Pairs lie at random places; between the last of them and the questions are
    at least `gap` blanks.
    """

    keys: int = 4
    values: int = 16
    times: int = 2
    gap: int = 0

    def __post_init__(self) -> None:
        check_settings(self, keys=1, times=1, values=self.times, gap=0)

    @property
    def vocab_size(self) -> int:
        """Keys, values, the blank."""
        return self.keys + self.values + 1

    @property
    def chance(self) -> float:
        """A guess among the values that the key has had: what a memory achieves that cannot tell the newest."""
        return 1 / self.times

    @property
    def shortest(self) -> int:
        """All pairs, the gap, and the questions with their answers."""
        return 2 * self.keys * self.times + self.gap + 2 * self.keys

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`."""
        check_length(self, length)
        blank = self.vocab_size - 1
        keys, values = self._pairs(generator, batch)
        newest = values[torch.arange(batch)[:, None], self._last_places(keys)]  # (B, keys)
        tokens = torch.full((batch, length), blank)
        room = (length - 2 * self.keys - self.gap) // 2
        places = 2 * draw_distinct(generator, batch, room, keys.shape[1]).sort(dim=1).values
        put(tokens, places, keys)
        put(tokens, places + 1, self.keys + values)
        order = draw_distinct(generator, batch, self.keys, self.keys)
        asked = length - 2 * self.keys + 2 * torch.arange(self.keys).expand(batch, -1)
        answer = self.keys + newest.gather(1, order)
        put(tokens, asked, order)
        put(tokens, asked + 1, answer)
        targets = torch.full_like(tokens, IGNORED)
        put(targets, asked, answer)
        return Batch(tokens, targets)

    def _pairs(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, keys * times) in the order in which they are stored."""
        values = draw_distinct(generator, batch * self.keys, self.values, self.times).reshape(batch, -1)
        order = draw_distinct(generator, batch, self.keys * self.times, self.keys * self.times)
        return order // self.times, values.gather(1, order)

    def _last_places(self, keys: Tensor) -> Tensor:
        """(B, keys): where each key stands for the last time."""
        stored = keys[:, None, :] == torch.arange(self.keys)[:, None]  # (B, keys, n)
        return (stored * torch.arange(1, keys.shape[1] + 1)).argmax(dim=2)
