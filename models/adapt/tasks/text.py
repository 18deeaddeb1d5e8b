"""Plain text: every next byte is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from models.adapt.tasks.base import IGNORED, Batch, check_length
from models.errors import ConfigError


@dataclass(frozen=True)
class Text:
    """Stretches of a text, as UTF-8 bytes, from anywhere in it."""

    content: str = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.content) < 2:
            raise ConfigError("a text to learn from needs at least two characters")

    @property
    def vocab_size(self) -> int:
        """All bytes."""
        return 256

    @property
    def chance(self) -> float:
        """The share of the commonest byte."""
        encoded = self.encoded
        return float(encoded.bincount().max()) / len(encoded)

    @property
    def shortest(self) -> int:
        """One byte and what follows it."""
        return 2

    @property
    def encoded(self) -> Tensor:
        """The bytes, (n,) int64."""
        return torch.frombuffer(bytearray(self.content.encode()), dtype=torch.uint8).long()

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """`batch` stretches of `length` bytes; nothing is asked at the last place. Raises `ConfigError` for a shorter text."""
        check_length(self, length)
        encoded = self.encoded
        if len(encoded) < length:
            raise ConfigError(f"the text has {len(encoded)} bytes, and sequences of {length} are asked for")
        starts = torch.randint(len(encoded) - length + 1, (batch, 1), generator=generator)
        tokens = encoded[starts + torch.arange(length)]
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = tokens[:, 1:]
        return Batch(tokens, targets)
