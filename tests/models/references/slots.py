"""`slots` as docs/memory.md describes it: scores from statistics of all that was ever evicted, the C best kept."""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.slots import SlotsConfig
from tests.models.references.window import Reference

Head = tuple[int, int]


class SlotsReference(Reference):
    """`kept` and `score` show which positions each retrieval head holds, and every score ever given."""

    memory: SlotsConfig

    def begin(self) -> None:
        """Every head's slots are empty."""
        heads = self.memory.heads
        self.kept: dict[Head, list[int]] = {head: [] for head in heads}
        self.leverage: dict[Head, dict[int, float]] = {head: {} for head in heads}
        self.score: dict[Head, dict[int, float]] = {head: {} for head in heads}

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Ring and kept slots in one softmax; the slots at distance W."""
        scores, values = self.near(layer, index, query)
        head = self.group(index)
        kept = self.kept.get((layer, head), [])
        far = self.turn(query, self.memory.window)
        scores = torch.stack([*scores, *(far @ self.keys[layer][place][head] / len(query) ** 0.5 for place in kept)])
        values = torch.stack([*values, *(self.values[layer][place][head] for place in kept)])
        return scores.softmax(0) @ values

    def fold(self, layer: int, start: int) -> None:
        """Score the segment, and keep the C best of old and new."""
        for head in self.kept:
            if head[0] == layer:
                self._fold(head, start)

    def _fold(self, head: Head, start: int) -> None:
        memory = self.memory
        end = start + memory.segment
        keys = [key[head[1]] for key in self.keys[head[0]]]
        # Statistics of all that was ever evicted, this segment included; sinks never count.
        if end <= memory.sinks:
            return
        gone = torch.stack(keys[memory.sinks : end])
        centre = gone.mean(dim=0)
        ridge = memory.ridge * torch.eye(len(centre), dtype=gone.dtype)
        spread = (gone - centre).T @ (gone - centre) / len(gone) + ridge
        known = self.leverage[head]
        ahead = dict(known)  # neighbours still in the ring are scored too, but only their own fold fixes their score
        for place in range(max(start, memory.sinks), end + memory.reach):
            away = keys[place] - centre
            ahead[place] = float(away @ torch.linalg.solve(spread, away))
        new = range(max(start, memory.sinks), end)
        known.update({place: ahead[place] for place in new})
        for place in new:
            around = range(place - memory.reach, place + memory.reach + 1)
            self.score[head][place] = max(ahead[near] for near in around if near in ahead)
        best = sorted([*self.kept[head], *new], key=lambda place: -self.score[head][place])
        self.kept[head] = sorted(best[: memory.slots])
