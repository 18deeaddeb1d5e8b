"""How slots are looked at: what a query head asks of keys that lie far away, which of equal ones, and how much has to be there.

All far tokens lie at one distance, and there are thousands of them: what an answer needs is drowned by what merely resembles it.
`palimpsest-server calibrate` learns the numbers here; nothing else of a pretrained model changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.asked import Before

RANK = 8
"""Dimensions in which a head may ask for something else than it asks its neighbourhood for."""
TRAIL = 8
"""Tokens before a key, and before a query, that say what either is about."""


class Look(nn.Module):
    """For the far query q of a head: it asks for `s q + (q A) B + g ⊙ trail`, and its far scores become larger by `w·q / √d + b`.

    s (`sharpness`) and b (`offset`) are one number, w (`eagerness`) and g (`gain`) vectors (d,), A and B (`down`, `up`) matrices
    (d, RANK) and (RANK, d) for each of the R key/value heads' G query heads. What was said anew has nearly the key of what was said
    before: scores rise from a head's oldest slot to its newest by the query's slope `h·q / √d + m`, h (`slope`) a vector and m
    (`steepness`) a number. The key of one token hardly says whom it is about;
    the keys before it do. So a far key k is kept as `k + trail`, with trail = Σ u_o ⊙ (k_o − c) over the TRAIL tokens before it:
    a short convolution by channel, u (`key_trail`, `query_trail`) of one kind for keys and of another for queries, c (`centre`)
    what all keys of a head have in common. Untrained, q and k stay as they are and nothing is added.
    """

    def __init__(self, heads: int, groups: int, size: int, wide: torch.dtype) -> None:
        super().__init__()
        # Where B is zero A matters to nobody, but zeros in both would never move; so it is with g and the trail of queries.
        source = torch.Generator().manual_seed(0)
        down = torch.randn(heads, groups, size, RANK, generator=source, dtype=wide) * size**-0.5
        self.sharpness = nn.Parameter(torch.ones(heads, groups, dtype=wide))
        self.offset = nn.Parameter(torch.zeros(heads, groups, dtype=wide))
        self.eagerness = nn.Parameter(torch.zeros(heads, groups, size, dtype=wide))
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(heads, groups, RANK, size, dtype=wide))
        self.centre = nn.Parameter(torch.zeros(heads, size, dtype=wide))
        self.key_trail = nn.Parameter(torch.zeros(heads, TRAIL, size, dtype=wide))
        self.query_trail = nn.Parameter(torch.ones(heads, TRAIL, size, dtype=wide))
        self.gain = nn.Parameter(torch.zeros(heads, groups, size, dtype=wide))
        self.slope = nn.Parameter(torch.zeros(heads, groups, size, dtype=wide))
        self.steepness = nn.Parameter(torch.zeros(heads, groups, dtype=wide))
        self.register_load_state_dict_pre_hook(_without_order)  # type: ignore[no-untyped-call]

    def forward(self, query: Tensor, before: Before, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        """What queries (B, r, G, t, d) of these heads ask for, in the same dtype; offsets and slopes (B, r, G, t), wide."""
        exact = query.to(self.up.dtype)
        asked = exact * self.sharpness[heads][:, :, None, None] + exact @ self.down[heads] @ self.up[heads]
        trail = self._trail(self.query_trail[heads], before, heads)
        asked = asked + trail[:, :, None] * self.gain[heads][:, :, None]
        scale = query.shape[-1] ** -0.5
        eager = (exact @ self.eagerness[heads][..., None]).squeeze(-1) * scale + self.offset[heads][:, :, None]
        slope = (exact @ self.slope[heads][..., None]).squeeze(-1) * scale + self.steepness[heads][:, :, None]
        return asked.to(query.dtype), eager, slope

    def kept(self, keys: Tensor, before: Before, heads: slice) -> Tensor:
        """What is kept of far keys (B, r, n, d), wide."""
        return keys + self._trail(self.key_trail[heads], before, heads)

    def _trail(self, weight: Tensor, before: Before, heads: slice) -> Tensor:
        """By weight (r, TRAIL, d), the farthest token's first: (B, r, n, d)."""
        told = (before.keys - self.centre[heads][:, None, :, None]) * before.known
        trail: Tensor = (told * weight.transpose(-1, -2)[:, None]).sum(dim=-1)
        return trail


def _without_order(look: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """An adapter from before there were slopes says nothing of them: it has none."""
    for name in ("slope", "steepness"):
        tensors.setdefault(prefix + name, torch.zeros_like(getattr(look, name)))
