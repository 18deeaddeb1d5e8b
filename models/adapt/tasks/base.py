"""What a task is: batches of tokens, and what a model should say where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from models.errors import ConfigError

IGNORED = -100
"""The target of a place where nothing is asked."""


@dataclass(frozen=True)
class Batch:
    """Sequences, and at each place the token that should come next, or `IGNORED`."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64."""
    imitate: float = 0.0
    """What the divergence from the base model weighs at the places that are asked."""
    graded: bool = True
    """Whether the accuracy says that longer sequences may come: not where much cannot be known."""
    marked: Tensor | None = None
    """(B, T) bool: the tokens that will be asked for, and that a memory should write; None: nobody can say."""
    answers: Tensor | None = None
    """(B, T) int64, with `marked`: which token of the answer stands there, counted from 1; 0: none."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        marked, answers = (None if x is None else x.to(device) for x in (self.marked, self.answers))
        tokens, targets = self.tokens.to(device), self.targets.to(device)
        return replace(self, tokens=tokens, targets=targets, marked=marked, answers=answers)

    @property
    def asked(self) -> Tensor:
        """(B, T) bool: where something is asked."""
        return self.targets != IGNORED

    @property
    def question(self) -> int:
        """The first place at which anything is asked in any row."""
        return int(self.asked.any(dim=0).nonzero()[0])


class Task(Protocol):
    """Something to be learned. Its batches depend on its settings and on the generator alone."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to this, exclusive."""

    @property
    def chance(self) -> float:
        """The accuracy of an answer that knows the task and not the sequence."""

    @property
    def shortest(self) -> int:
        """The least number of tokens a sequence can have."""

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """`batch` sequences of `length` tokens. Raises `ConfigError` when that is too short."""


def check_length(task: Task, length: int) -> None:
    """Raises `ConfigError` when a sequence of the task cannot be that short."""
    if length < task.shortest:
        raise ConfigError(f"{type(task).__name__.lower()} needs at least {task.shortest} tokens, not {length}")


def check_settings(task: object, **least: int) -> None:
    """Raises `ConfigError` when a setting is below its least value."""
    for name, value in least.items():
        if getattr(task, name) < value:
            raise ConfigError(
                f"{name} of {type(task).__name__.lower()} must be at least {value}, not {getattr(task, name)}"
            )


def draw_distinct(generator: Generator, batch: int, among: int, count: int) -> Tensor:
    """(batch, count) different numbers from 0 to `among`, exclusive, in random order."""
    return torch.rand(batch, among, generator=generator).argsort(dim=1)[:, :count]


def draw(generator: Generator, batch: int, count: int, low: int, high: int) -> Tensor:
    """(batch, count) independent numbers from `low` to `high`, exclusive."""
    return torch.randint(low, high, (batch, count), generator=generator)


def put(tokens: Tensor, places: Tensor, values: Tensor) -> None:
    """Write values (B, n) at places (B, n) of tokens (B, T)."""
    tokens.scatter_(1, places, values)
