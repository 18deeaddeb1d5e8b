"""Whether and how strongly something is written: what the memories share that learn it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ConfigError


@dataclass(frozen=True)
class Marked:
    """What a memory should write of the sequences that it learns from."""

    places: Tensor
    """(B, T) bool."""
    begins: Tensor
    """(B,) int64: the position of each row's first token."""
    answers: Tensor | None = None
    """(B, T) int64: which token of the answer stands there, counted from 1; 0: none. None: nobody can say."""
    questions: Tensor | None = None
    """(B, T) int64: which token of the answer should come next, counted from 1; 0: nothing is asked. None: nobody can say."""

    def within(self, starts: Tensor, count: int) -> Tensor:
        """Whether anything is marked among the `count` tokens from positions `starts` (B,) on: (B,) bool."""
        return self.at(starts, count).any(dim=1)

    def at(self, starts: Tensor, count: int) -> Tensor:
        """Which of the `count` tokens from positions `starts` (B,) on are marked: (B, count) bool."""
        return self._of(self.places, starts, count)

    def answering(self, starts: Tensor, count: int, tokens: int) -> Tensor | None:
        """Which of the `count` tokens from positions `starts` (B,) on are the first, second … of `tokens` tokens of the answer:
        (B, tokens, count) bool; None where nobody can say."""
        return None if self.answers is None else self._numbered(self.answers, starts, count, tokens)

    def asking(self, starts: Tensor, count: int, tokens: int) -> Tensor | None:
        """The same of what should come next behind each: (B, tokens, count) bool."""
        return None if self.questions is None else self._numbered(self.questions, starts, count, tokens)

    def _numbered(self, x: Tensor, starts: Tensor, count: int, tokens: int) -> Tensor:
        return self._of(x, starts, count)[:, None] == torch.arange(1, tokens + 1, device=starts.device)[:, None]

    def _of(self, x: Tensor, starts: Tensor, count: int) -> Tensor:
        """x (B, T) from positions `starts` on, (B, count); 0 outside of it."""
        offsets = (starts - self.begins)[:, None] + torch.arange(count, device=starts.device)
        inside = (offsets >= 0) & (offsets < x.shape[1])
        return x.gather(1, offsets.clamp(0, x.shape[1] - 1)) * inside


def check_writing(init: float, cost: float, floor: float = 0.0) -> None:
    """Raises `ConfigError` for a strength before training, a floor, or a price of writing that cannot be."""
    if not 0 < init < 1:
        raise ConfigError(f"write_init must lie between 0 and 1, both excluded, not {init}")
    if not 0 <= floor < 1:
        raise ConfigError(f"write_floor must be 0 or more and less than 1, not {floor}")
    if not 0 <= cost < math.inf:
        raise ConfigError(f"write_cost must be 0 or more nats, not {cost}")


def above(share: Tensor, floor: float) -> Tensor:
    """The share, 0 below the floor and from there on stretched, so that it has no jump: a sigmoid alone never reaches 0."""
    return ((share - floor) / (1 - floor)).relu() if floor else share


def logit(share: float) -> float:
    """Where the sigmoid is `share`."""
    return math.log(share / (1 - share))
