"""The decoder as its memory is described, slow and obvious: one token at a time, float64, nothing ever thrown away.

Every key (before rotation) and value of every position stays in a list. What the real decoder has forgotten is left
out only when a query looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.config import MemoryConfig, ModelConfig
from models.memory.slots import SlotsConfig

Vector = NDArray[np.float64]
Head = tuple[int, int]


class Reference:
    """One session. `kept` and `score` show which positions each retrieval head holds, and every score ever given."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, torch.Tensor], memory: MemoryConfig) -> None:
        self._config, self._memory = config, memory
        self._weights: dict[str, Vector] = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        heads = [(layer, head) for layer in range(config.num_layers) for head in range(config.num_kv_heads)]
        self.keys: dict[Head, list[Vector]] = {head: [] for head in heads}
        self.values: dict[Head, list[Vector]] = {head: [] for head in heads}
        retrieving = memory.heads if isinstance(memory, SlotsConfig) else ()
        self.kept: dict[Head, list[int]] = {head: [] for head in retrieving}
        self.leverage: dict[Head, dict[int, float]] = {head: {} for head in retrieving}
        self.score: dict[Head, dict[int, float]] = {head: {} for head in retrieving}
        self.position = 0

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Take tokens in; logits (n, V) float64."""
        return torch.from_numpy(np.stack([self._step(token) for token in tokens]))

    def _step(self, token: int) -> Vector:
        x = self._weights["model.embed_tokens.weight"][token]
        for layer in range(self._config.num_layers):
            x = x + self._attention(layer, self._norm(x, f"model.layers.{layer}.input_layernorm"))
            x = x + self._mlp(layer, self._norm(x, f"model.layers.{layer}.post_attention_layernorm"))
        self.position += 1
        ring = self._memory.window + self._memory.segment
        if self.position >= ring and self.position % self._memory.segment == 0:
            for head in self.kept:
                self._fold(head, self.position - ring)
        result: Vector = self._weights["model.embed_tokens.weight"] @ self._norm(x, "model.norm")
        return result

    def _norm(self, x: Vector, name: str) -> Vector:
        scaled: Vector = x / np.sqrt(np.mean(x * x) + self._config.rms_norm_eps)
        return scaled * self._weights[f"{name}.weight"]

    def _project(self, layer: int, name: str, x: Vector) -> Vector:
        result: Vector = self._weights[f"model.layers.{layer}.{name}.weight"] @ x
        return result

    def _mlp(self, layer: int, x: Vector) -> Vector:
        gate = self._project(layer, "mlp.gate_proj", x)
        hidden = gate / (1 + np.exp(-gate)) * self._project(layer, "mlp.up_proj", x)
        return self._project(layer, "mlp.down_proj", hidden)

    def _attention(self, layer: int, x: Vector) -> Vector:
        config = self._config
        queries = self._project(layer, "self_attn.q_proj", x).reshape(config.num_heads, config.head_dim)
        keys = self._project(layer, "self_attn.k_proj", x).reshape(config.num_kv_heads, config.head_dim)
        values = self._project(layer, "self_attn.v_proj", x).reshape(config.num_kv_heads, config.head_dim)
        for head in range(config.num_kv_heads):
            self.keys[layer, head].append(keys[head])
            self.values[layer, head].append(values[head])
        share = config.num_heads // config.num_kv_heads
        outs = [self._attend((layer, index // share), query) for index, query in enumerate(queries)]
        return self._project(layer, "self_attn.o_proj", np.concatenate(outs))

    def _attend(self, head: Head, query: Vector) -> Vector:
        memory, now = self._memory, self.position
        base = max(0, now // memory.segment * memory.segment - memory.window)
        seen: list[tuple[float, int]] = []  # score, position
        near = self._turn(query, now)
        if base > 0:
            for sink in range(memory.sinks):
                moved = self._turn(self.keys[head][sink], base - memory.sinks + sink)
                seen.append((float(near @ moved), sink))
        for place in range(base, now + 1):
            seen.append((float(near @ self._turn(self.keys[head][place], place)), place))
        far = self._turn(query, memory.window)
        for place in self.kept.get(head, ()):
            seen.append((float(far @ self.keys[head][place]), place))
        scores = np.array([score for score, _ in seen]) / np.sqrt(self._config.head_dim)
        weights = np.exp(scores - scores.max())
        values = np.stack([self.values[head][place] for _, place in seen])
        result: Vector = weights @ values / weights.sum()
        return result

    def _turn(self, x: Vector, position: int) -> Vector:
        half = self._config.head_dim // 2
        angle = position * self._config.rope_theta ** -(np.arange(half) / half)
        first, second = x[:half], x[half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate((first * cos - second * sin, second * cos + first * sin))

    def _fold(self, head: Head, start: int) -> None:
        memory = self._memory
        assert isinstance(memory, SlotsConfig)
        end = start + memory.segment
        # Statistics of all that was ever evicted, this segment included; sinks never count.
        gone = np.array(self.keys[head][memory.sinks : end])
        if not len(gone):
            return
        spread = np.cov(gone, rowvar=False, bias=True) + memory.ridge * np.eye(self._config.head_dim)
        centre = gone.mean(axis=0)
        known = self.leverage[head]
        ahead = dict(known)  # neighbours still in the ring are scored too, but only their own fold fixes their score
        for place in range(max(start, memory.sinks), end + memory.reach):
            away = self.keys[head][place] - centre
            ahead[place] = float(away @ np.linalg.solve(spread, away))
        new = range(max(start, memory.sinks), end)
        known.update({place: ahead[place] for place in new})
        for place in new:
            around = range(place - memory.reach, place + memory.reach + 1)
            self.score[head][place] = max(ahead[near] for near in around if near in ahead)
        best = sorted([*self.kept[head], *new], key=lambda place: -self.score[head][place])
        self.kept[head] = sorted(best[: memory.slots])
