"""Passkey: a few digits behind a marker somewhere in filler, asked for at the very end.

The form of the passkey test of Infini-attention (arXiv 2404.07143) and of Mohtashami and Jaggi (2305.16300), in symbols of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from models.adapt.tasks.base import IGNORED, Batch, check_length, check_settings, draw, draw_distinct, put
from models.errors import ConfigError


@dataclass(frozen=True)
class Passkey:
    """`filler ... MARKER d1 d2 ... filler ... QUESTION d1 d2`, where each digit of the answer is asked for.

    The digits of a key differ from one another, so that what follows a digit is certain. `depth` is where the key lies: 0 at
    the beginning, 1 directly before the question, None anywhere. Filler is drawn from symbols that are no digits.
    """

    digits: int = 2
    alphabet: int = 16
    filler: int = 16
    depth: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, digits=1, alphabet=self.digits, filler=1)
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ConfigError(f"depth of passkey must lie between 0 and 1, or be None, not {self.depth}")

    @property
    def vocab_size(self) -> int:
        """Digits, filler, the marker and the question."""
        return self.alphabet + self.filler + 2

    @property
    def chance(self) -> float:
        """A guessed digit."""
        return 1 / self.alphabet

    @property
    def shortest(self) -> int:
        """Marker, key, question, and all digits of the answer but the last."""
        return 2 * self.digits + 1

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`."""
        check_length(self, length)
        marker, question = self.vocab_size - 2, self.vocab_size - 1
        tokens = draw(generator, batch, length, self.alphabet, self.alphabet + self.filler)
        key = draw_distinct(generator, batch, self.alphabet, self.digits)
        room = length - self.shortest  # filler tokens
        begin = draw(generator, batch, 1, 0, room + 1)
        if self.depth is not None:
            begin.fill_(round(self.depth * room))
        tokens.scatter_(1, begin, marker)
        put(tokens, begin + torch.arange(1, self.digits + 1), key)
        asked = length - self.digits
        tokens[:, asked] = question
        tokens[:, asked + 1 :] = key[:, :-1]
        targets = torch.full_like(tokens, IGNORED)
        targets[:, asked:] = key
        return Batch(tokens, targets)
