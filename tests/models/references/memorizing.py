"""The Memorizing Transformer (arXiv 2203.08913, section 3): the k nearest of the last M evicted tokens, found by sorting.

Not the paper's: local attention is the model's own, without normalisation; without the learned gate, memories lie at distance W
and stand in one softmax with the ring, as in the Focused Transformer (arXiv 2307.03170).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.memorizing import MemorizingConfig
from tests.models.references.window import Reference


class MemorizingReference(Reference):
    """Memories are constants: they are looked at without their history."""

    memory: MemorizingConfig

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """The ring, and the memory of the query's key/value head."""
        scores, values = self.near(layer, index, query)
        places = range(max(self.memory.sinks, self.base - self.memory.entries), self.base)
        if layer not in self.layers or not places:
            return scores.softmax(0) @ values
        head, learned = self.group(index), self.memory.gate == "learned"
        keys = torch.stack([self.keys[layer][place][head].detach() for place in places])
        memories = torch.stack([self.values[layer][place][head].detach() for place in places])
        if learned:
            row = self.layers.index(layer)
            scale = self.parameters["log_scale"][row, index].exp()
            unit = query / query.square().sum().sqrt()
            found = scale * (keys / keys.square().sum(1, keepdim=True).sqrt()) @ unit
        else:
            found = keys @ self.turn(query, self.memory.window) / len(query) ** 0.5
        best = found.sort(descending=True).indices[: self.memory.top_k]
        if not learned:
            joint = torch.cat((scores, found[best])).softmax(0)
            return joint @ torch.cat((values, memories[best]))
        gate = self.parameters["gate"][row, index].sigmoid()
        return gate * (found[best].softmax(0) @ memories[best]) + (1 - gate) * (scores.softmax(0) @ values)
