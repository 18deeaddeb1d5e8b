"""Low-rank adaptation (LoRA, arXiv 2106.09685) of a layer's attention: small matrices that are learned beside frozen ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class AttentionLora(nn.Module):
    """W + up · down for the four projections of one layer: `down` (r, in) is drawn at random, `up` (out, r) begins at zero.

    An untrained one changes nothing. Parameters are float32 whatever the weights are.
    """

    def __init__(self, config: ModelConfig, rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, queries = config.hidden_size, config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.rank = rank
        for name, inner, outer in zip(
            PROJECTIONS, (width, width, width, queries), (queries, keys, keys, width), strict=True
        ):
            drawn = torch.randn(rank, inner, generator=generator) * inner**-0.5
            self.register_parameter(f"{name}_down", nn.Parameter(drawn))
            self.register_parameter(f"{name}_up", nn.Parameter(torch.zeros(outer, rank)))

    def qkv(self, x: Tensor) -> Tensor:
        """What is added to the fused queries, keys and values of x (..., D)."""
        down = torch.cat([self._of(name, "down") for name in PROJECTIONS[:3]])
        low = F.linear(x, down.to(x.dtype)).split(self.rank, dim=-1)
        parts = [
            F.linear(part, self._of(name, "up").to(x.dtype)) for part, name in zip(low, PROJECTIONS[:3], strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def out(self, x: Tensor) -> Tensor:
        """What is added to the output projection of x (..., H·d)."""
        return F.linear(F.linear(x, self._of("o_proj", "down").to(x.dtype)), self._of("o_proj", "up").to(x.dtype))

    @torch.no_grad()
    def merged(self, qkv: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen matrices with this added to them, in their dtype."""
        change = torch.cat([self._of(name, "up") @ self._of(name, "down") for name in PROJECTIONS[:3]])
        return (
            (qkv.float() + change.to(qkv.device)).to(qkv.dtype),
            (out.float() + (self._of("o_proj", "up") @ self._of("o_proj", "down")).to(out.device)).to(out.dtype),
        )

    def _of(self, projection: str, side: str) -> Tensor:
        return self.get_parameter(f"{projection}_{side}")
