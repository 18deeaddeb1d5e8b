"""`feedback` as algorithm 2 and appendix B.1 of TransformerFAM (arXiv 2404.09173) have it.

Not the paper's: a gate on what is read, and one on what is written; the first block does not see the initial feedback; `limit`;
`carry_initial`; sinks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.memory.feedback import FeedbackConfig
from tests.models.references.decision import decision
from tests.models.references.window import Reference


class FeedbackReference(Reference):
    """`feedback` is F by layer, (n, D); it starts as what the layers make of `initial`.

    `seen` are its keys (n, K, d), turned, and values.
    """

    memory: FeedbackConfig

    def begin(self) -> None:
        """Pass the initial feedback up through the layers."""
        self.feedback: list[Tensor] = []
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.updated = [
            [not (self.memory.gated and self.memory.carry_initial)] * self.memory.tokens for _ in self.layers
        ]
        prompt = self.parameters["initial"]
        for layer in range(self.config.num_layers):
            self.feedback.append(prompt)
            places = range(-self.memory.tokens, 0)
            self.seen.append(self._own(layer, places))
            mixed = prompt + self._ask(layer, prompt, places, *self.seen[layer])
            prompt = mixed + self.feed_forward(layer, mixed)

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """Ring and feedback in one softmax."""
        scores, values = self.near(layer, index, query)
        if layer not in self.layers or self.position < self.memory.segment:
            return scores.softmax(0) @ values
        row = self.layers.index(layer)
        head, gate = self.group(index), self.parameters["gate"][row, index].sigmoid()
        far_keys, far_values = (x[self.updated[row]] for x in self.seen[layer])
        if not len(far_keys):
            return scores.softmax(0) @ values
        far = far_keys[:, head] @ self.turn(query, self.position) / len(query) ** 0.5
        if self.memory.join == "gate":
            mixed: Tensor = (1 - gate) * (scores.softmax(0) @ values) + gate * (far.softmax(0) @ far_values[:, head])
            return mixed
        weights = torch.cat((scores, far)).softmax(0)
        # The gate takes its part of the feedback's weight; what it leaves goes to the ring, in proportion.
        ring, kept = weights[: len(scores)], weights[len(scores) :] * gate
        ring = ring / ring.sum() * (1 - kept.sum())
        return ring @ values + kept @ far_values[:, head]

    def finish(self, layer: int, start: int) -> None:
        """The feedback asks itself and the block that begins at `start`, and is replaced."""
        if layer not in self.layers:
            return
        end = start + self.memory.segment
        block = torch.stack([self.turn(self.keys[layer][place], place) for place in range(start, end)])
        keys = torch.cat((self.seen[layer][0], block))
        values = torch.cat((self.seen[layer][1], torch.stack(self.values[layer][start:end])))
        places = range(end - self.memory.tokens, end)
        mixed = self._ask(layer, self.feedback[layer], places, keys, values)
        carried = torch.stack([self._limited(token) for token in self.feedback[layer]])
        kept = start > 0 or self.memory.carry_initial
        if kept:
            mixed = mixed + carried
        after = mixed + self.feed_forward(layer, mixed) if self.memory.feed_forward else mixed
        if kept and self.memory.gated:
            pairs = zip(self.feedback[layer], after, strict=True)
            after = torch.stack([self._written(layer, *pair) for pair in enumerate(pairs)])
        self.feedback[layer] = after
        self.seen[layer] = self._own(layer, places)

    def _written(self, layer: int, token: int, pair: tuple[Tensor, Tensor]) -> Tensor:
        """What becomes of one token: what it was, or what it would be."""
        row = self.layers.index(layer)
        seen = torch.cat([one / (one.square().mean() + 1e-6).sqrt() for one in pair])
        call = self.parameters["write_weight"][row] @ seen + self.parameters["write_offset"][row, token]
        part = decision(call)
        self.updated[row][token] |= bool(call > 0)
        return (1 - part) * pair[0] + part * pair[1]

    def _limited(self, token: Tensor) -> Tensor:
        """A feedback token (D,), no larger than the limit."""
        size = token.square().mean().sqrt()
        return token * self.memory.limit / size if 0 < self.memory.limit < size else token

    def _own(self, layer: int, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys, turned, and values of a layer's feedback at its places: (n, K, d) each."""
        _, keys, values = self.project(layer, self.feedback[layer])
        return torch.stack([self.turn(key, place) for key, place in zip(keys, places, strict=True)]), values

    def _ask(self, layer: int, asking: Tensor, places: Sequence[int], keys: Tensor, values: Tensor) -> Tensor:
        """What attention gives to tokens (n, D) at their places, from keys (N, K, d), turned, and values: (n, D)."""
        queries, _, _ = self.project(layer, asking)
        rows = []
        for token, place in zip(queries, places, strict=True):
            heads = []
            for index, query in enumerate(self.turn(token, place)):
                head = self.group(index)
                scores = keys[:, head] @ query / len(query) ** 0.5
                heads.append(scores.softmax(0) @ values[:, head])
            rows.append(self.mix(layer, torch.stack(heads)))
        return torch.stack(rows)
