"""The decoder as its memory is described, slow and obvious: one token at a time, float64, nothing ever thrown away.

Every key (before rotation) and value of every position stays in a list. What the real decoder has forgotten is left
out only when a query looks. All of it is differentiable. The reference of a mechanism says what is different with it:
what it holds at the beginning, how a head attends, and what a fold or a finished segment changes. Where a mechanism does
otherwise than its paper, its reference does as docs/memory.md says of the mechanism, and names the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import MemoryConfig, ModelConfig


class Reference:
    """One session over the window alone. `tensors` are the checkpoint's; those in float64 may ask for gradients.

    `parameters` are what the memory has learned, by name. `layers` are those that have the memory.
    """

    memory: MemoryConfig

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        memory: MemoryConfig,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.memory, self.parameters = config, memory, parameters or {}
        self.layers = sorted(getattr(memory, "layers", ())) or list(range(config.num_layers))
        self._weights = {
            name: tensor if tensor.dtype == torch.float64 else tensor.double() for name, tensor in tensors.items()
        }
        self.keys: list[list[Tensor]] = [[] for _ in range(config.num_layers)]
        """By layer, then position: (K, d) before rotation."""
        self.turned: list[list[Tensor]] = [[] for _ in range(config.num_layers)]
        """The keys, each rotated by its own position."""
        self.values: list[list[Tensor]] = [[] for _ in range(config.num_layers)]
        self.position = 0
        self.begin()

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Take tokens in; logits (n, V) float64."""
        return torch.stack([self._step(token) for token in tokens])

    @property
    def base(self) -> int:
        """The first position that is still in the ring, which is how many tokens were evicted."""
        memory = self.memory
        return max(0, self.position // memory.segment * memory.segment - memory.window)

    def begin(self) -> None:
        """What the memory holds before the first token."""

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """What query head `index` gets (d,) for its query (d,) before rotation. The ring alone, here."""
        scores, values = self.near(layer, index, query)
        return scores.softmax(0) @ values

    def fold(self, layer: int, start: int) -> None:
        """The segment that begins at `start` leaves the ring."""

    def finish(self, layer: int, start: int) -> None:
        """The segment that begins at `start` is complete."""

    def heard(self, layer: int, x: Tensor) -> None:
        """The output (D,) of a layer for the token at this position."""

    def near(self, layer: int, index: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,), scaled, and values (n, d) of the sinks and of what is in the ring, this position included."""
        head, base = self.group(index), self.base
        keys, values = self.turned[layer][base:], self.values[layer][base:]
        if base > 0:
            sinks = range(self.memory.sinks)
            keys = [self.turn(self.keys[layer][sink], base - len(sinks) + sink) for sink in sinks] + keys
            values = self.values[layer][: len(sinks)] + values
        turned = self.turn(query, self.position)
        scores = torch.stack(keys)[:, head] @ turned / self.config.head_dim**0.5
        return scores, torch.stack(values)[:, head]

    def group(self, index: int) -> int:
        """The key/value head of query head `index`."""
        return index // (self.config.num_heads // self.config.num_kv_heads)

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Rotary embedding (arXiv 2104.09864) of x (..., d) at a position."""
        half = self.config.head_dim // 2
        angle = position * self.config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def weight(self, layer: int, name: str) -> Tensor:
        """A projection of one layer, such as `self_attn.q_proj`."""
        return self._weights[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Root-mean-square norm of x (..., D) with the weights of that name."""
        mean = x.square().mean(dim=-1, keepdim=True)
        return x / (mean + self.config.rms_norm_eps).sqrt() * self._weights[f"{name}.weight"]

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """What the layer's network adds to x (..., D)."""
        normed = self.norm(x, f"model.layers.{layer}.post_attention_layernorm")
        gate = F.silu(normed @ self.weight(layer, "mlp.gate_proj").T)
        return (gate * (normed @ self.weight(layer, "mlp.up_proj").T)) @ self.weight(layer, "mlp.down_proj").T

    def project(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., H, d), keys and values (..., K, d) of hidden vectors x (..., D), without rotation."""
        config = self.config
        normed = self.norm(x, f"model.layers.{layer}.input_layernorm")
        parts = [normed @ self.weight(layer, f"self_attn.{name}_proj").T for name in "qkv"]
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        query, key, value = (part.unflatten(-1, (count, -1)) for part, count in zip(parts, heads, strict=True))
        return query, key, value

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """The output projection of heads (..., H, d)."""
        return heads.flatten(-2) @ self.weight(layer, "self_attn.o_proj").T

    def _step(self, token: int) -> Tensor:
        x = self._weights["model.embed_tokens.weight"][token]
        for layer in range(self.config.num_layers):
            queries, keys, values = self.project(layer, x)
            self.keys[layer].append(keys)
            self.turned[layer].append(self.turn(keys, self.position))
            self.values[layer].append(values)
            heads = [self.attend(layer, index, query) for index, query in enumerate(queries)]
            x = x + self.mix(layer, torch.stack(heads))
            x = x + self.feed_forward(layer, x)
            self.heard(layer, x)
        self.position += 1
        memory = self.memory
        if self.position % memory.segment == 0:
            for layer in range(self.config.num_layers):
                self.finish(layer, self.position - memory.segment)
                if self.position >= memory.ring:
                    self.fold(layer, self.position - memory.ring)
        return self._weights["model.embed_tokens.weight"] @ self.norm(x, "model.norm")
