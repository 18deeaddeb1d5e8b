"""Several tasks at once: every batch is of one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from models.adapt.tasks.base import Batch, Task
from models.errors import ConfigError


@dataclass(frozen=True)
class Mixture:
    """Tasks, and how often each has its turn. They must have one vocabulary."""

    tasks: tuple[Task, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tasks or len(self.tasks) != len(self.weights) or min(self.weights) <= 0:
            raise ConfigError("a mixture needs one task or more, and for each a weight above 0")
        if len({task.vocab_size for task in self.tasks}) > 1:
            raise ConfigError("the tasks of a mixture must have one vocabulary")

    @property
    def vocab_size(self) -> int:
        """That of all of them."""
        return self.tasks[0].vocab_size

    @property
    def chance(self) -> float:
        """The best of theirs."""
        return max(task.chance for task in self.tasks)

    @property
    def shortest(self) -> int:
        """What all of them can fill."""
        return max(task.shortest for task in self.tasks)

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """One task's batch, drawn by the weights."""
        drawn = int(torch.multinomial(torch.tensor(self.weights), 1, generator=generator))
        return self.tasks[drawn].batch(generator, batch, length)
