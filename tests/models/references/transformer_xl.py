"""Transformer-XL (arXiv 1901.02860) with rotary positions: hidden states are cached, keys and values computed from them anew."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.references.window import Reference


class TransformerXLReference(Reference):
    """`stop` is the paper's: no gradient reaches what was computed in earlier segments, though it reaches W_k and W_v."""

    stop = False

    def begin(self) -> None:
        """Nothing is cached."""
        self.hidden: list[list[Tensor]] = [[] for _ in range(self.config.num_layers)]
        """By layer, then position: (D,), the output of the layer below."""
        self.seen: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def project(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base has it; remembers what it was asked to project."""
        self.hidden[layer].append(x)
        return super().project(layer, x)

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Softmax over the cache of W hidden states before the segment, and the segment up to this token."""
        if index == 0:  # for all heads of the layer
            self.seen = self.look_back(layer)
        keys, values = (seen[:, self.group(index)] for seen in self.seen)
        scores = keys @ self.turn(query, self.position) / self.config.head_dim**0.5
        out: Tensor = scores.softmax(0) @ values
        return out

    def look_back(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys, turned, and values (n, K, d) of all that this position sees."""
        now = self.position
        border = now // self.memory.segment * self.memory.segment
        first = max(0, border - self.memory.window)
        cache = [x.detach() if self.stop else x for x in self.hidden[layer][first:border]]
        _, keys, values = super().project(layer, torch.stack([*cache, *self.hidden[layer][border : now + 1]]))
        return torch.stack([self.turn(key, place) for place, key in enumerate(keys, first)]), values
