"""Plain text in a model's own tokens: some of the next tokens are asked for, and the base model may be held on to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from models.adapt.tasks.base import IGNORED, Batch, check_length
from models.errors import ConfigError


@dataclass(frozen=True)
class Passages:
    """Stretches of an encoded text (n,) from anywhere in it.

    A `share` of the places is asked: reading out a large vocabulary costs as much as several layers. `imitate` weighs how far
    the model's distribution is from the base model's there (Kullback-Leibler divergence, in nats). Nothing of it is marked: a
    memory that is told what to write is told that plain text is not worth it.
    """

    encoded: Tensor = field(repr=False)
    vocab_size: int
    share: float = 0.1
    imitate: float = 0.0

    @property
    def chance(self) -> float:
        """The share of the commonest token."""
        return float(self.encoded.bincount().max()) / len(self.encoded)

    @property
    def shortest(self) -> int:
        """One token and what follows it."""
        return 2

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`. Raises `ConfigError` for a text that is shorter."""
        check_length(self, length)
        if len(self.encoded) <= length:
            raise ConfigError(
                f"the text has {len(self.encoded)} tokens, and {length + 1} are needed: give a longer one"
            )
        starts = torch.randint(len(self.encoded) - length, (batch, 1), generator=generator)
        stretch = self.encoded[starts + torch.arange(length + 1)]
        asked = torch.rand(batch, length, generator=generator) < self.share
        asked[:, -1] = True
        tokens, targets = stretch[:, :-1], stretch[:, 1:].where(asked, IGNORED)
        nothing = torch.zeros_like(tokens)
        return Batch(tokens, targets, self.imitate, graded=False, marked=nothing.bool(), answers=nothing)
