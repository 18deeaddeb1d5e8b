"""The Compressive Transformer (arXiv 1911.05507): every token that ever left the ring, compressed c to 1, the last n_cm seen.

Not the paper's: keys and values are compressed by head, where it compresses hidden vectors and projects them; all entries lie at
distance W, where it has relative positions; sinks are left out, and of their group the others weigh the more; the task's gradients
reach the convolution unless `task_gradient` is off, where the paper's never do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from models.memory.compressive import CompressiveConfig
from tests.models.references.window import Reference


class CompressiveReference(Reference):
    """`compressed` holds the key and value, (K, d) each, of every group there ever was, by layer."""

    memory: CompressiveConfig

    def begin(self) -> None:
        """Nothing is compressed yet."""
        self.compressed: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in self.layers}

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """One softmax over the ring and the newest entries, which lie at distance W."""
        scores, values = self.near(layer, index, query)
        head, far = self.group(index), self.turn(query, self.memory.window)
        entries = self.compressed.get(layer, [])[-self.memory.entries :]
        if entries:
            keys = torch.stack([key[head] for key, _ in entries])
            far_scores, beyond = keys @ far / len(query) ** 0.5, self.memory.sharpen_beyond
            if 0 < beyond < len(entries):
                far_scores = far_scores * math.log(len(entries)) / math.log(beyond) - math.log(len(entries) / beyond)
            scores = torch.cat((scores, far_scores))
            values = torch.cat((values, torch.stack([value[head] for _, value in entries])))
        return scores.softmax(0) @ values

    def fold(self, layer: int, start: int) -> None:
        """Compress the groups of a segment, without the sinks that are among them."""
        rate = self.memory.rate
        for begin in range(start, start + self.memory.segment, rate) if layer in self.layers else ():
            places = [place for place in range(begin, begin + rate) if place >= self.memory.sinks]
            if not places:
                continue
            key = self.compress(layer, "key", {place - begin: self.keys[layer][place] for place in places})
            value = self.compress(layer, "value", {place - begin: self.values[layer][place] for place in places})
            self.compressed[layer].append((key, value))

    def compress(self, layer: int, name: str, group: Mapping[int, Tensor]) -> Tensor:
        """A group's vectors (K, d), by their place in it, as one."""
        if self.memory.compression == "mean":
            return torch.stack(list(group.values())).mean(0)
        if self.memory.compression == "max":
            return torch.stack(list(group.values())).amax(0)
        kernel = self.parameters[f"{name}_kernel"][self.layers.index(layer)]  # (K, c, d, d)
        heads = []
        for head in range(self.config.num_kv_heads):
            sums = [vector[head] @ kernel[head, place] for place, vector in group.items()]
            heads.append(torch.stack(sums).sum(0) * self.memory.rate / len(sums))
        made = torch.stack(heads)
        return made if self.memory.task_gradient else made.detach()
