"""`infini` from the equations: Infini-attention (arXiv 2404.07143) and Gated DeltaNet (arXiv 2412.06464), token by token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig
from models.memory.infini import InfiniConfig
from tests.models.references.window import Reference


def sigma(x: Tensor) -> Tensor:
    """The paper's feature map."""
    return F.elu(x) + 1


class InfiniReference(Reference):
    """`matrices` and `norms` are M and z by (layer, key/value head), for the heads that have written."""

    memory: InfiniConfig

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        memory: InfiniConfig,
        parameters: Mapping[str, Tensor],
    ) -> None:
        super().__init__(config, tensors, memory)
        self.parameters = parameters
        self.places = {layer: place for place, layer in enumerate(sorted(memory.layers) or range(config.num_layers))}
        self.matrices: dict[tuple[int, int], Tensor] = {}
        self.norms: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Local attention and the memory's answer, weighed by the head's gate."""
        local = super().attend(layer, index, query)
        head = (layer, self.group(index))
        if head not in self.matrices:
            return local
        share = self.parameters["gate"][self.places[layer], index].sigmoid()
        return share * self.answer(head, query) + (1 - share) * local

    def answer(self, head: tuple[int, int], query: Tensor) -> Tensor:
        """What the memory of one head returns for a vector (d,)."""
        if self.memory.rule == "gated_delta":
            answer: Tensor = query / query.norm() @ self.matrices[head]
        else:
            answer = sigma(query) @ self.matrices[head] / (sigma(query) @ self.norms[head])
        return answer

    def fold(self, layer: int, start: int) -> None:
        """Write the segment into every head's memory; the sinks stay in sight and are not written."""
        places = range(max(start, self.memory.sinks), start + self.memory.segment)
        if layer not in self.places or not places:
            return
        for head in range(self.config.num_kv_heads):
            pairs = [(self.keys[layer][place][head], self.values[layer][place][head]) for place in places]
            if self.memory.rule == "gated_delta":
                self._write_one_by_one((layer, head), pairs)
            else:
                self._write_segment((layer, head), pairs)

    def _write_segment(self, head: tuple[int, int], pairs: list[tuple[Tensor, Tensor]]) -> None:
        size = self.config.head_dim
        empty = head not in self.matrices
        before = self.matrices.get(head, torch.zeros(size, size, dtype=torch.float64))
        norm = grown = self.norms.get(head, torch.zeros(size, dtype=torch.float64))
        segment = torch.stack([sigma(key) for key, _ in pairs]).sum(dim=0)
        for key, _ in pairs:
            new = (1 - sigma(key) @ norm / (sigma(key) @ segment)).clamp(0, 1) if self.memory.normalised else 1
            grown = grown + new * sigma(key)
        after = before
        for key, value in pairs:
            known = torch.zeros_like(value)
            if self.memory.rule == "delta" and not empty:
                weight = sigma(key) @ norm
                if self.memory.normalised:
                    weight = torch.maximum(sigma(key) @ grown, sigma(key) @ segment)
                known = sigma(key) @ before / weight
            after = after + torch.outer(sigma(key), value - known)
        self.matrices[head], self.norms[head] = after, grown

    def _write_one_by_one(self, head: tuple[int, int], pairs: list[tuple[Tensor, Tensor]]) -> None:
        place, size = self.places[head[0]], self.config.head_dim
        learned = {name: parameter[place] for name, parameter in self.parameters.items() if name != "gate"}
        matrix = self.matrices.get(head, torch.zeros(size, size, dtype=torch.float64))
        for key, value in pairs:
            both = torch.cat((key, value))
            write = torch.sigmoid(learned["write_weight"][head[1]] @ both + learned["write_offset"][head[1]])
            fade = torch.exp(-F.softplus(learned["decay_weight"][head[1]] @ both + learned["decay_offset"][head[1]]))
            unit = key / key.norm()
            matrix = fade * matrix + write * torch.outer(unit, value - fade * unit @ matrix)
        self.matrices[head] = matrix
