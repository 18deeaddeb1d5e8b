"""`slots` as docs/memory.md describes it: scores from statistics of all that was ever evicted, or foretold; the C best kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.memory.beginnings import LEAST
from models.memory.slots import WORTHLESS, SlotsConfig
from tests.models.references.window import Reference

Head = tuple[int, int]


class SlotsReference(Reference):
    """`kept` and `score` show which positions each retrieval head holds, and every score ever given."""

    memory: SlotsConfig

    def begin(self) -> None:
        """Every head's slots are empty."""
        heads = self.memory.heads
        self.tokens: list[int] = []
        self.kept: dict[Head, list[int]] = {head: [] for head in heads}
        self.leverage: dict[Head, dict[int, float]] = {head: {} for head in heads}
        self.score: dict[Head, dict[int, float]] = {head: {} for head in heads}
        self.foretold: list[Tensor] = []

    def read(self, tokens: Sequence[int]) -> Tensor:
        """As every other, but remembering what was said."""
        self.tokens += tokens
        return super().read(tokens)

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Ring and kept slots in one softmax; the slots at distance W, asked for what the look makes of the query."""
        scores, values = self.near(layer, index, query)
        head = self.group(index)
        kept = self.kept.get((layer, head), [])
        far = self.turn(query, self.memory.window)
        offset = slope = torch.zeros((), dtype=torch.float64)
        if self.memory.importance == "learned" and kept:
            row, among = sorted(self.memory.heads).index((layer, head)), index % len(self.group_of(head))
            look = {
                name: self._look(name)[row, among]
                for name in ("sharpness", "offset", "eagerness", "down", "up", "gain", "slope", "steepness")
            }
            offset = look["eagerness"] @ far / len(far) ** 0.5 + look["offset"]
            slope = look["slope"] @ far / len(far) ** 0.5 + look["steepness"]
            trail = self._trail("query_trail", layer, head, len(self.keys[layer]) - 1)
            far = look["sharpness"] * far + look["up"].T @ (look["down"].T @ far) + look["gain"] * trail
        away = [
            far @ self._stored("key", layer, head, place) / len(query) ** 0.5 + offset - slope * newer / len(kept)
            for newer, place in zip(range(len(kept) - 1, -1, -1), kept, strict=True)
        ]
        scores = torch.stack([*scores, *away])
        values = torch.stack([*values, *(self._stored("value", layer, head, place) for place in kept)])
        return scores.softmax(0) @ values

    def _look(self, name: str) -> Tensor:
        return self.parameters[f"look.{name}"].double()

    def _trail(self, name: str, layer: int, head: int, place: int) -> Tensor:
        """What the keys before a place add to a key or a query there."""
        row = sorted(self.memory.heads).index((layer, head))
        weight, centre = self._look(name)[row], self._look("centre")[row]
        trail = torch.zeros_like(centre)
        for back in range(1, len(weight) + 1):
            if place >= back:
                trail = trail + weight[-back] * (self.keys[layer][place - back][head] - centre)
        return trail

    def group_of(self, head: int) -> range:
        """The query heads that share a key/value head."""
        size = self.config.num_heads // self.config.num_kv_heads
        return range(head * size, (head + 1) * size)

    def heard(self, layer: int, x: Tensor) -> None:
        """Foretell what the token is worth to every head."""
        if self.memory.importance == "learned" and layer == self.memory.listens:
            learned = {name: tensor.double() for name, tensor in self.parameters.items()}
            normed = x / (x.square().mean() + torch.finfo(torch.float64).eps).sqrt()
            inner = F.silu(learned["importance.down"] @ normed + learned["importance.offset"])
            self.foretold.append(learned["importance.up"] @ inner)

    def _stored(self, name: str, layer: int, head: int, place: int) -> Tensor:
        """A key or value as a slot returns it: with four bits, the nearest of sixteen steps on the head's grid."""
        vector = self._far(name, layer, head, place)
        if self.memory.slot_dtype != "int4":
            return vector
        # The grid is that of the first segment that has more than sinks.
        sinks, segment = self.memory.sinks, self.memory.segment
        places = range(sinks, (sinks // segment + 1) * segment)
        first = torch.stack([self._far(name, layer, head, other) for other in places])
        centre, spread = first.mean(dim=0), first.std(dim=0, correction=0).clamp_min(1e-6)
        steps = (vector - centre) / spread
        scale = (steps.abs().max() / 15).to(torch.bfloat16).double()
        odd = 2 * ((steps / scale + 15) / 2).round().clamp(0, 15) - 15
        return odd * scale * spread + centre

    def _far(self, name: str, layer: int, head: int, place: int) -> Tensor:
        """A key, with what it trails, or a value."""
        if name == "value":
            return self.values[layer][place][head]
        key = self.keys[layer][place][head]
        return key + self._trail("key_trail", layer, head, place) if self.memory.importance == "learned" else key

    def fold(self, layer: int, start: int) -> None:
        """Score the segment, and keep the C best of old and new."""
        for head in self.kept:
            if head[0] == layer:
                self._fold(head, start)

    def _fold(self, head: Head, start: int) -> None:
        memory = self.memory
        end = start + memory.segment
        keys = [key[head[1]] for key in self.keys[head[0]]]
        # Sinks never count.
        if end <= memory.sinks:
            return
        new = range(max(start, memory.sinks), end)
        if memory.importance == "learned":
            row = sorted(memory.heads).index(head)
            self.score[head].update({place: float(self.foretold[place][row]) for place in new})
        else:
            self._lever(head, keys, new)
        for place in [*self.kept[head], *new]:
            newer = [other for other in new if other > place]
            if self._said(place) is not None and self._said(place) in map(self._said, newer):
                self.score[head][place] = WORTHLESS
        best = sorted([*self.kept[head], *new], key=lambda place: -self.score[head][place])
        self.kept[head] = sorted(best[: memory.slots])

    def _said(self, place: int) -> tuple[int, ...] | None:
        """The tokens of its sentence before it, if there are enough of them."""
        begin = place
        while begin > 0 and self.tokens[begin - 1] not in self.memory.ends:
            begin -= 1
        enough = self.memory.ends and place - begin >= LEAST
        return tuple(self.tokens[begin:place]) if enough else None

    def _lever(self, head: Head, keys: list[Tensor], new: range) -> None:
        """Score what leaves by leverage, smoothed over its neighbours."""
        memory, end = self.memory, new.stop
        # Statistics of all that was ever evicted, this segment included.
        gone = torch.stack(keys[memory.sinks : end])
        centre = gone.mean(dim=0)
        ridge = memory.ridge * torch.eye(len(centre), dtype=gone.dtype)
        spread = (gone - centre).T @ (gone - centre) / len(gone) + ridge
        known = self.leverage[head]
        ahead = dict(known)  # neighbours still in the ring are scored too, but only their own fold fixes their score
        for place in range(new.start, end + memory.reach):
            away = keys[place] - centre
            ahead[place] = float(away @ torch.linalg.solve(spread, away))
        known.update({place: ahead[place] for place in new})
        for place in new:
            around = range(place - memory.reach, place + memory.reach + 1)
            self.score[head][place] = max(ahead[near] for near in around if near in ahead)
