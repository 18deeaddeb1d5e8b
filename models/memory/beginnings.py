"""Sentences that begin alike: for each token a number that stands for its sentence up to it.

Where two tokens stand behind the same words from the beginning of a sentence on, the newer one says what holds now: "the number of
Viola is" is followed by another number, and the old one must not be found any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native
from models.state import MemoryState, Spec, TensorSpec

LEAST = 4
"""Tokens of a sentence before a token that say what it is about: of fewer, too many begin alike."""
_BASE = 6364136223846793005
_MIX = -7046029254386353131
_WORD = 2**64


class Beginnings:
    """A polynomial over the token ids of a sentence, modulo 2⁶⁴ (Karp & Rabin 1987), of which 31 bits are kept.

    Sentences end with a token of `ends`. The same for all heads and layers; one of 2³¹ pairs is taken for alike by mistake.
    """

    def __init__(self, ends: Sequence[int], vocab_size: int) -> None:
        self._ends = torch.zeros(vocab_size, dtype=torch.bool)
        self._ends[list(ends)] = True

    def spec(self) -> Spec:
        """The sentence at the session's end: its polynomial, the next power less one, and its length."""
        return {"sentence": TensorSpec((3,), torch.int64)}

    def read(self, tokens: Tensor, state: MemoryState) -> Tensor:
        """Take tokens (B, t) in. Returns what stands before each in its sentence, (B, t) int32, 0 for less than LEAST tokens."""
        length, device = tokens.shape[1], tokens.device
        if self._ends.device != device:
            self._ends = self._ends.to(device)
        if native.suits_beginnings(tokens, state):
            return native.read_beginnings(tokens, state, self._ends, LEAST, _BASE, _MIX)
        powers, inverse = (table[: length + 1] for table in _tables(_rounded_up(length), device))
        known, power, so_far = state.read("sentence").split(1, dim=1)  # (B, 1) each
        power = power + 1
        # Sums up to each token, and where the sentence began that it stands in: 0 … t, where t is behind the last one.
        sums = F.pad(((tokens + 1) * powers[:-1]).cumsum(dim=1), (1, 0))
        place = torch.arange(length + 1, device=device)
        begin = torch.where(self._ends[tokens], place[1:], 0).cummax(dim=1).values
        begin = F.pad(begin, (1, 0))
        here = begin > 0
        found = torch.where(here, (sums - sums.gather(1, begin)) * inverse[begin], known + sums * power)
        count = torch.where(here, place - begin, so_far + place)
        following = torch.where(here, powers[place - begin], power * powers)
        state.write("sentence", torch.stack((found[:, -1], following[:, -1] - 1, count[:, -1]), dim=1))
        said = (found[:, :-1] * _MIX >> 32).to(torch.int32) | 1
        return said.masked_fill(count[:, :-1] < LEAST, 0)

    @staticmethod
    def again(old: Tensor, new: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Which of old (B, r, C) and new (B, r, S) tokens are followed by a newer one behind the same words, that is `real`."""
        later = torch.ones(new.shape[-1], new.shape[-1], dtype=torch.bool, device=new.device).triu(1)
        by = torch.where(real, new, 0)[..., None, :]
        of_old = ((old[..., None] == by) & (by != 0)).any(dim=-1)
        return of_old, ((new[..., None] == by) & (by != 0) & later).any(dim=-1)


def _rounded_up(length: int) -> int:
    return 1 << length.bit_length()


@cache
def _tables(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Powers of the base from 0 to `length`, and of its inverse, modulo 2⁶⁴ as int64."""
    found = []
    for base in (_BASE, pow(_BASE, -1, _WORD)):
        power, powers = 1, []
        for _ in range(length + 1):
            powers.append(power - _WORD if power >= _WORD // 2 else power)
            power = power * base % _WORD
        found.append(torch.tensor(powers, device=device))
    return found[0], found[1]
