"""How a model is trained: one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.errors import ConfigError


@dataclass(frozen=True)
class TrainSettings:
    """All that a run depends on beside the model and the task.

    Sequences begin with `first_segments` segments and grow by one, up to `last_segments`, whenever the accuracy of the last
    `patience` steps that were as long as that has passed `advance_at`. At the longest, training ends when that accuracy
    reaches `stop_at`; it ends in any case after `steps` steps or `seconds` seconds.
    """

    first_segments: int
    last_segments: int
    steps: int = 2000
    seconds: float = math.inf
    batch: int = 32
    learning_rate: float = 1e-3
    gate_learning_rate: float = 1e-2
    """For the gates and biases of the memory, which do not decay."""
    memory_learning_rate: float | None = None
    """For what else the memory has to learn; None: as all the rest."""
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 50
    patience: int = 5
    advance_at: float = 0.9
    stop_at: float = 0.99
    truncate: int = 0
    """Segments through which gradients flow back; 0: all of the sequence."""
    reach: int = 0
    """Segments at the end of a sequence that the model itself learns from; before them the memory alone learns what to write,
    which costs less than half as much. 0: all of the sequence."""
    ahead: int = 0
    """Segments of haystack that have been read before each sequence, without gradients, so that the memory is as full as in a
    long session. They are read anew every 20 steps, once for all sequences: long contexts at the price of short ones."""
    carry: float = 0.0
    """The probability that a step begins with the state in which the last one ended (random state passing, arXiv 2404.09173)."""
    ragged: bool = False
    """Whether sequences end anywhere in their last segment. Without it whatever is asked at the end always stands as far behind the
    last finished segment, and a memory that has places in the text is found from there alone."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.first_segments <= self.last_segments:
            raise ConfigError(
                f"training must begin with at least one segment and with no more than it ends with, not with"
                f" {self.first_segments} and {self.last_segments}"
            )
        for name in ("steps", "seconds", "batch", "learning_rate", "gate_learning_rate", "clip", "patience"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} of a training must be above 0, not {getattr(self, name)}")
        if self.memory_learning_rate is not None and self.memory_learning_rate <= 0:
            raise ConfigError(f"memory_learning_rate of a training must be above 0, not {self.memory_learning_rate}")
        for name in ("weight_decay", "warmup", "truncate", "reach", "ahead"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} of a training must not be negative, but is {getattr(self, name)}")
        if self.reach and self.truncate:
            raise ConfigError("a training takes either truncate or reach, not both: each says where gradients end")
        for name in ("carry", "advance_at", "stop_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a training must lie between 0 and 1, not {getattr(self, name)}")
