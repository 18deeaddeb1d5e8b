"""`infini` from the equations: Infini-attention (arXiv 2404.07143) and Gated DeltaNet (arXiv 2412.06464), token by token.

Not the papers': the ring is what is local; sinks are never written, and the gate is passed by until something is; `normalised`
counts a key in the normaliser only as far as it is new to it; `projections` are maps of the memory's own for keys and queries; a
write's strength and decay are learned from key and value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.memory.infini import InfiniConfig
from tests.models.references.window import Reference


def sigma(x: Tensor) -> Tensor:
    """The paper's feature map."""
    return F.elu(x) + 1


class InfiniReference(Reference):
    """`matrices` and `norms` are M and z by (layer, key/value head), for the heads that have written."""

    memory: InfiniConfig

    def begin(self) -> None:
        """No head has written."""
        self.matrices: dict[tuple[int, int], Tensor] = {}
        self.norms: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Local attention and the memory's answer, weighed by the head's gate."""
        local = super().attend(layer, index, query)
        head = (layer, self.group(index))
        if head not in self.matrices:
            return local
        if self.memory.projections:
            query = query @ self.parameters["query_map"][self.layers.index(layer), index]
        share = self.parameters["gate"][self.layers.index(layer), index].sigmoid()
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
        if layer not in self.layers or not places:
            return
        for head in range(self.config.num_kv_heads):
            pairs = [(self.keys[layer][place][head], self.values[layer][place][head]) for place in places]
            if self.memory.projections:
                own = self.parameters["key_map"][self.layers.index(layer), head]
                pairs = [(key @ own, value) for key, value in pairs]
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
        place, size = self.layers.index(head[0]), self.config.head_dim
        learned = {name: parameter[place] for name, parameter in self.parameters.items() if name != "gate"}
        matrix = self.matrices.get(head, torch.zeros(size, size, dtype=torch.float64))
        for key, value in pairs:
            both = torch.cat((key, value))
            write = torch.sigmoid(learned["write_weight"][head[1]] @ both + learned["write_offset"][head[1]])
            floor = self.memory.write_floor
            write = (write - floor) / (1 - floor) if write > floor else torch.zeros_like(write)
            fade = torch.tensor(1.0, dtype=torch.float64)
            if self.memory.decay_init:
                fade = torch.exp(
                    -F.softplus(learned["decay_weight"][head[1]] @ both + learned["decay_offset"][head[1]])
                )
            unit = key / key.norm()
            matrix = fade * matrix + write * torch.outer(unit, value - fade * unit @ matrix)
        self.matrices[head] = matrix
