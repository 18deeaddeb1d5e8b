"""Segments on their way out of the ring, made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.base import Evicted


def evicted(keys: Tensor, values: Tensor, start: int, *, sinks: int = 0, queries: Tensor | None = None) -> Evicted:
    """Keys (B, K, S + lookahead, d) and values (B, K, S, d) from `start` on in every row; a token's id is 1,000 + its position."""
    rows, _, length, _ = values.shape
    places = torch.arange(start, start + length).expand(rows, -1)  # (B, S)
    return Evicted(
        take=lambda: (keys, values),
        tokens=(1000 + places).to(torch.int32),
        starts=torch.full((rows,), start),
        counted=places >= sinks,
        queries=queries,
    )
