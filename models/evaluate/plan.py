"""What an evaluation is to measure: a frozen value, validated where it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.errors import ConfigError
from models.evaluate.results import TASKS

CONTROLS = ("memory_off", "shuffled", "window", "full_attention")
FULL_LENGTH = 8_192
"""Tokens up to which full attention is measured: its state grows with the text, and its time with the square of it."""
SHORTEST = 1_024
"""Tokens. The last 600 of them have nothing hidden in them, and the rest needs the end of a sentence."""


@dataclass(frozen=True)
class Plan:
    """Tasks, controls, lengths in tokens, and at least how many questions each figure is a mean of."""

    tasks: Sequence[str] = TASKS
    controls: Sequence[str] = CONTROLS
    lengths: Sequence[int] = (2_048, 4_096, 8_192)
    trials: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `ConfigError`."""
        for kind, named, known in (("task", self.tasks, TASKS), ("control", self.controls, CONTROLS)):
            if unknown := sorted(set(named) - set(known)):
                raise ConfigError(f"no {kind} is called {', '.join(unknown)}; there are {', '.join(known)}")
        if not self.lengths or min(self.lengths) < SHORTEST:
            raise ConfigError(f"lengths are in tokens, and the shortest is {SHORTEST:,}")
        if self.trials < 1:
            raise ConfigError(f"trials must be 1 or more, not {self.trials}")

    @property
    def longest(self) -> int:
        """Tokens."""
        return max(self.lengths)

    def check_book(self, tokens: int) -> None:
        """Raises `ConfigError` when the book is too short for the longest length."""
        if tokens < self.longest:
            raise ConfigError(f"the book has {tokens:,} tokens, too few for the length {self.longest:,}")

    def left_out(self) -> Iterator[str]:
        """What will not be measured, and why."""
        long = [f"{length:,}" for length in self.lengths if length > FULL_LENGTH]
        if "full_attention" in self.controls and long:
            yield f"full_attention is left out at {', '.join(long)} tokens: it is measured up to {FULL_LENGTH:,}"
        if "shuffled" in self.controls and "nll" in self.tasks:
            yield "shuffled is left out of nll: memories are exchanged before a question, and nothing is asked there"
