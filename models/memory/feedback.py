"""`feedback`: tokens that are no text read every finished block, and what became of them is read with the next one.

TransformerFAM (arXiv 2404.09173), algorithm 2. Each memory layer has n feedback tokens F. When a block of S tokens is finished,
F asks itself and the block, passes the layer's own projections and feed-forward network, and is replaced by the outcome; the
tokens of the following block see F's keys and values in the same softmax as their own. Nothing is taken from what leaves the
ring: it was in F before.

`gated` is ours: whether an update happens is learned, token by token, from what the token was and from what it would become,
after the gates of the Block-Recurrent Transformer (arXiv 2203.07852). What the paper adds to F at every block, be it of interest
or not, drowns in the end whatever F held; a token that is not updated stays as it is, however long.

Two more things are not the paper's. Of the share that the softmax gives to the feedback a learned gate a head keeps
sigmoid(gate): all of it in the paper, hardly any before a pretrained model has learned to use it. (A bias on the scores does not
close: an untrained key can have any score.) And the first block does not see the initial feedback, so that a model is the base
model until there is something to remember.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.attention import attend_with_mass
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import Layer, rotate, wide
from models.memory.base import Evicted, Finished, LayerReport, Mechanism, Report
from models.memory.deciding import DecidingConfig, DecidingMemory
from models.memory.strength import logit
from models.state import MemoryState, Spec, TensorSpec


@dataclass(frozen=True)
class FeedbackConfig(DecidingConfig):
    """`tokens` is n; the paper's m past blocks are the window over the segment.

    What is carried from block to block only ever grows in the paper, until a new block hardly changes it. `limit` is the root
    mean square to which it is scaled down before a block is added; 0: never.
    `gate_init` is where the gates start, before the sigmoid: well above 0 for a model that is trained with it from scratch.

    `carry_initial` carries the initial feedback on as well, which the paper does not: what it asks for stays in all later
    feedback, and the first block is one like any other. `gated` learns which updates happen; without `carry_initial` that of the
    first block always does, with it a token is seen from its first update on.

    `join` says how the feedback is read: in one "softmax" with the ring, or beside it by a "gate", which is then what it weighs.

    `answers_taught` is, in training, the weight of what feedback misses where a task says what will be asked for: the first
    feedback token should find the answer's first token, hold its values, and be found when that is due, and so on. The calls of a
    `gated` memory are then told so, too, token by token. `feed_forward` is whether the network, too, adds to what attention found:
    the paper's does, and a pretrained one drowns in what it makes of any token what a token should be known by.
    """

    by_segment = True

    tokens: int = 64
    gate_init: float = -10.0
    limit: float = 0.0
    carry_initial: bool = False
    join: str = "softmax"
    feed_forward: bool = True
    answers_taught: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.tokens < self.segment:
            raise ConfigError(
                f"tokens ({self.tokens}) must lie between 1 and the segment ({self.segment}) less one: lower it"
            )
        if not self.limit >= 0:
            raise ConfigError(f"limit must be 0 (for none) or above, not {self.limit}")
        if self.join not in ("softmax", "gate"):
            raise ConfigError(f"join must be softmax or gate, not {self.join!r}")
        if not 0 <= self.answers_taught < math.inf:
            raise ConfigError(f"answers_taught must be 0 (for not at all) or above, not {self.answers_taught}")


_UNSEEN = -1e4
"""Added to scores on what must not be seen: as good as -inf, and finite where there is nothing else."""
_SCALE = 0.1
"""Standard deviation of the initial feedback: about that of the embeddings of small pretrained models."""


class Feedback(DecidingMemory):
    """See the top of this file."""

    config: FeedbackConfig
    follows = True

    def __init__(self, model: ModelConfig, config: FeedbackConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._layers = config.memory_layers(model)
        self._kv_heads, self._groups, self._dtype = model.num_kv_heads, model.queries_per_kv, dtype
        self._width, self._size = model.hidden_size, model.head_dim
        last = max(self._layers)
        # By layer: the index of the first memory layer from it on. There the initial feedback waits on its way up.
        self._next = {
            layer: next(self._layers[later] for later in range(layer, last + 1) if later in self._layers)
            for layer in range(last + 1)
        }
        start = torch.randn(config.tokens, model.hidden_size, generator=torch.Generator().manual_seed(0)) * _SCALE
        self.initial = nn.Parameter(start.to(wide(dtype)))
        gates = (len(self._layers), model.num_heads)
        self.gate = nn.Parameter(torch.full(gates, float(config.gate_init), dtype=wide(dtype)))
        if config.gated:
            layers = len(self._layers)
            offset = torch.full((layers, config.tokens), logit(config.write_init), dtype=wide(dtype))
            self.write_offset = nn.Parameter(offset)
            self.write_weight = nn.Parameter(torch.zeros(layers, 2 * model.hidden_size, dtype=wide(dtype)))

    @torch.no_grad()
    def begin_with(self, embeddings: Tensor) -> None:
        """The initial feedback as a text, over and over: prompts of words are learned better than such from nowhere
        (arXiv 2104.08691, section 3.2)."""
        count, repeats = self.config.tokens, -(-self.config.tokens // len(embeddings))
        self.initial.copy_(embeddings.repeat(repeats, 1)[-count:])

    def spec(self) -> Spec:
        """The feedback of each memory layer, and what the layer projects of it, so that a read need not."""
        layers, tokens = len(self._layers), self.config.tokens
        projected = TensorSpec((layers, self._kv_heads, tokens, self._size), self._dtype)
        spec = {
            "feedback": TensorSpec((layers, tokens, self._width), wide(self._dtype)),
            "feedback_keys": projected,
            "feedback_values": projected,
        }
        return {**spec, "feedback_updated": TensorSpec((layers, tokens), torch.bool)} if self._waits else spec

    @property
    def _waits(self) -> bool:
        """Whether tokens are seen only when they have been updated."""
        return self.config.gated and self.config.carry_initial

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._layers

    def mixes(self, layer: int) -> bool:
        """See `Memory.mixes`."""
        return layer in self._layers and not self.config.feed_forward

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """The feedback after the last finished block, seen by all heads at the positions of that block's last tokens."""
        if layer not in self._layers or not any(asked.finished):
            return None
        index = self._layers[layer]
        keys, values = state.read("feedback_keys", index), state.read("feedback_values", index)  # (B, K, n, d)
        bias, seen = None, None
        if not all(asked.finished):
            seen = torch.tensor([finished > 0 for finished in asked.finished], device=keys.device)
        if self._waits:
            updated = state.read("feedback_updated", index)  # (B, n)
            seen = updated.any(dim=1)
            bias = torch.zeros_like(updated, dtype=keys.dtype).masked_fill(~updated, _UNSEEN)[:, None, None]
            bias = bias.expand(-1, 1, asked.near.shape[2] * asked.near.shape[3], -1)
            self._teach_reading(asked, keys, updated)
        out, mass = attend_with_mass(asked.near, keys, values, bias)
        return Beside(
            heads=list(range(self._kv_heads)),
            out=out.to(wide(self._dtype)),
            mass=mass if self.config.join == "softmax" else None,
            gate=self.gate[index].sigmoid().view(1, self._kv_heads, self._groups, 1, 1),
            filled=seen,
        )

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Nothing to do: the block went into the feedback when it was finished."""

    def finish(self, layer: int, weights: Layer, state: MemoryState, finished: Finished) -> None:
        """Algorithm 2 for the feedback of one layer: A = attention(F; [F, block]) + F, then A + feed-forward(A)."""
        if finished.first and layer in self._next:
            self._begin(layer, weights, state.select(finished.first), finished)
        if layer not in self._layers:
            return
        index, tokens = self._layers[layer], self.config.tokens
        feedback = state.read("feedback", index)  # (B, n, D)
        cos, sin = finished.cos[:, :, -tokens:], finished.sin[:, :, -tokens:]
        query = rotate(weights.project(feedback)[0], cos, sin)  # (B, H, n, d)
        keys = torch.cat((state.read("feedback_keys", index), finished.keys), dim=2)  # (B, K, n + S, d)
        values = torch.cat((state.read("feedback_values", index), finished.values), dim=2)
        carried = self._limited(feedback)
        if not self.config.carry_initial:
            # The paper's initial feedback asks, but holds nothing that should be carried on (appendix B.1).
            carried = carried.masked_fill((finished.starts == 0)[:, None, None], 0)
        after = _through(weights, carried, query, keys, values, self.config.feed_forward)
        wanted = self._wanted(finished.starts)
        if self.config.gated:
            due = None if wanted is None else wanted.any(dim=2)
            strength = self._strength(index, feedback, after, finished.starts, due)
            after = torch.lerp(feedback, after, strength[..., None])
            if self._waits:
                state.write("feedback_updated", state.read("feedback_updated", index) | (strength > 0), index)
        feedback = after
        state.write("feedback", feedback, index)
        _, key, value = weights.project(feedback)
        state.write("feedback_keys", rotate(key, cos, sin), index)
        state.write("feedback_values", value, index)
        if wanted is not None:
            self._teach(query.unflatten(1, (self._kv_heads, -1)), keys, F.pad(wanted, (tokens, 0)))
            self._teach_values(value, finished.values, wanted)

    def report(self, state: MemoryState) -> Report:
        """The feedback tokens, in use from the first finished block on."""
        tokens = self.config.tokens
        used = tokens * self._kv_heads if state.positions[0] >= self.config.segment else 0
        heads = tuple(range(self._kv_heads))
        return Report(tuple(LayerReport(layer, heads, tokens, used) for layer in self._layers))

    def _wanted(self, starts: Tensor) -> Tensor | None:
        """Which tokens of a block each feedback token should find, (B, n, S) bool; None where that is not taught."""
        config = self.config
        if self.losses is None or self.marked is None or not config.answers_taught:
            return None
        return self.marked.answering(starts, config.segment, config.tokens)

    def _teach_reading(self, asked: Asked, keys: Tensor, updated: Tensor) -> None:
        """Tell queries which of the updated (B, n) feedback tokens have the token that is due behind each of them."""
        if self.losses is None or self.marked is None or not self.config.answers_taught:
            return
        starts = torch.tensor(asked.positions, device=keys.device)
        wanted = self.marked.asking(starts, asked.near.shape[3], self.config.tokens)
        if wanted is not None:
            self._teach(asked.near, keys, (wanted & updated[..., None]).mT)

    def _teach(self, query: Tensor, keys: Tensor, wanted: Tensor) -> None:
        """Let what queries (B, K, G, t, d) find of `wanted` (B, t, N) among keys (B, K, N, d) count as a loss.

        It is the cross-entropy of the mean over all heads: which of them look is left to them.
        """
        assert self.losses is not None
        due = wanted.any(dim=2)
        if due.any():
            scores = query @ keys[:, :, None].mT / self._size**0.5  # (B, K, G, t, N)
            found = scores.to(wide(self._dtype)).softmax(dim=-1).mean(dim=(1, 2))
            missed = (found * wanted).sum(dim=2)[due].clamp_min(1e-6).log().neg()
            self.losses.append(self.config.answers_taught / len(self._layers) * missed.mean())

    def _teach_values(self, held: Tensor, values: Tensor, wanted: Tensor) -> None:
        """Tell feedback tokens that their values (B, K, n, d) should be those (B, K, S, d) of the tokens that they want (B, n, S).

        The mean square of the difference, as a part of that of the values.
        """
        assert self.losses is not None
        due = wanted.any(dim=2)
        if due.any():
            share = wanted.to(wide(self._dtype))
            share = (share / share.sum(dim=2, keepdim=True).clamp_min(1))[:, None]  # (B, 1, n, S)
            right = (share @ values.detach().to(share.dtype)).transpose(1, 2)[due]  # (N, K, d)
            missed = (held.to(share.dtype).transpose(1, 2)[due] - right).square().mean() / right.square().mean()
            self.losses.append(self.config.answers_taught / len(self._layers) * missed)

    def _strength(self, index: int, before: Tensor, after: Tensor, starts: Tensor, due: Tensor | None) -> Tensor:
        """Which of the tokens `before` (B, n, D) become what the block would turn them into, `after`: (B, n), 1 or 0.

        The first block is taken whole where there is nothing yet that could be kept. `due` as in `_decided`.
        """
        seen = torch.cat((_normed(before), _normed(after)), dim=-1)  # (B, n, 2D)
        calls = seen @ self.write_weight[index] + self.write_offset[index]  # (B, n)
        strength = self._decided(calls, starts, len(self._layers), due)
        if not self.config.carry_initial:
            strength = strength.masked_fill((starts == 0)[:, None], 1)
        return strength

    def _limited(self, feedback: Tensor) -> Tensor:
        """Each token of (B, n, D) scaled down to the limit."""
        if not self.config.limit:
            return feedback
        size = feedback.square().mean(dim=-1, keepdim=True).sqrt()
        return feedback * (self.config.limit / size).clamp(max=1)

    def _begin(self, layer: int, weights: Layer, state: MemoryState, finished: Finished) -> None:
        """Give new sessions the initial feedback as it is in this layer, and pass it on to the next one.

        Like a prompt it goes up through the layers, each token seeing all of its tokens and none of the text (appendix B.1): the
        same for all sessions. It stands directly before the text, at positions -n to -1.
        """
        tokens, index = self.config.tokens, self._next[layer]
        # The same for every row, so one is enough. `starts` is 0: the table has position p at place p.
        prompt = self.initial[None] if layer == 0 else state.read("feedback", index)[:1]  # (1, n, D)
        row, places = finished.first[0], slice(1, tokens + 1)
        cos = finished.cos[row, :, places].flip(1)
        sin = -finished.sin[row, :, places].flip(1)  # (1, n, d/2)
        query, key, value = weights.project(prompt)
        key = rotate(key, cos, sin)
        if layer in self._layers:
            state.write("feedback", prompt, index)
            state.write("feedback_keys", key, index)
            state.write("feedback_values", value, index)
        if layer + 1 in self._next:
            prompt = _through(weights, prompt, rotate(query, cos, sin), key, value)
            state.write("feedback", prompt, self._next[layer + 1])


def _normed(x: Tensor) -> Tensor:
    """x (..., D) with a root mean square of 1; 0 stays 0."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


def _through(
    weights: Layer, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, feed_forward: bool = True
) -> Tensor:
    """What a layer makes of x (B, n, D), whose query (B, H, n, d) sees all of keys and values (B, K, N, d): (B, n, D)."""
    grouped = query.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # (B, K, G*n, d)
    heads = F.scaled_dot_product_attention(grouped, keys, values).view(query.shape)
    return weights.end(x.clone(), heads) if feed_forward else x + weights.mix(heads)


MECHANISM = Mechanism("feedback", FeedbackConfig, Feedback)
