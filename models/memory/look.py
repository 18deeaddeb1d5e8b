"""How slots are looked at: what a query head asks of keys that lie far away, and how much it has to find there.

All far tokens lie at one distance, and there are thousands of them: what an answer needs is drowned by what merely resembles it.
`palimpsest-server calibrate` learns the numbers here; nothing else of a pretrained model changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANK = 8
"""Dimensions in which a head may ask for something else than it asks its neighbourhood for."""


class Look(nn.Module):
    """For the far query q of a head: it asks for `s q + (q A) B`, and all its far scores become larger by `w·q / √d + b`.

    s (`sharpness`) and b (`offset`) are one number, w (`eagerness`) one vector (d,), A and B (`down`, `up`) matrices (d, RANK) and
    (RANK, d) for each of the R key/value heads' G query heads. Untrained, q stays as it is and nothing is added.
    """

    def __init__(self, heads: int, groups: int, size: int, wide: torch.dtype) -> None:
        super().__init__()
        # Where B is zero A matters to nobody, but zeros in both would never move.
        source = torch.Generator().manual_seed(0)
        down = torch.randn(heads, groups, size, RANK, generator=source, dtype=wide) * size**-0.5
        self.sharpness = nn.Parameter(torch.ones(heads, groups, dtype=wide))
        self.offset = nn.Parameter(torch.zeros(heads, groups, dtype=wide))
        self.eagerness = nn.Parameter(torch.zeros(heads, groups, size, dtype=wide))
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(heads, groups, RANK, size, dtype=wide))

    def forward(self, query: Tensor, heads: slice) -> tuple[Tensor, Tensor]:
        """What queries (B, r, G, t, d) of these heads ask for, in the same dtype, and the offsets (B, r, G, t), wide."""
        exact = query.to(self.up.dtype)
        asked = exact * self.sharpness[heads][:, :, None, None] + exact @ self.down[heads] @ self.up[heads]
        eager = (exact @ self.eagerness[heads][..., None]).squeeze(-1) * query.shape[-1] ** -0.5
        return asked.to(query.dtype), eager + self.offset[heads][:, :, None]
