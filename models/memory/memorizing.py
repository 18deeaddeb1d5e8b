"""`memorizing`: chosen layers keep the keys and values of M evicted tokens and attend to the k nearest (arXiv 2203.08913).

Each query head searches, exactly, the memory of its key/value head, and takes the softmax of the k highest scores. How that is
joined with the ring is a choice:

- `learned`, the paper's: queries and keys are normalised, with a learned scale a head (arXiv 2010.04245), nothing has a
  position, and a learned gate a head mixes the memory's answer with the ring's.
- `softmax`, for models that were never trained with a memory: scores are the model's own, with all memories at distance W, and
  they stand in one softmax with the ring's, as in the Focused Transformer (arXiv 2307.03170).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayeredConfig, Mechanism, Memory, Report
from models.memory.fifo import Fifo
from models.memory.nearest import attend_nearest
from models.state import MemoryState, Spec


@dataclass(frozen=True)
class MemorizingConfig(LayeredConfig):
    """`entries` is M, for each key/value head; `top_k` is k.

    With the learned gate, `gate_init` is where it starts, before the sigmoid, and `scale_init` what normalised scores are
    multiplied with at first.
    """

    entries: int = 4096
    top_k: int = 32
    gate: Literal["softmax", "learned"] = "softmax"
    gate_init: float = -10.0
    scale_init: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entries < self.segment:
            raise ConfigError(f"entries ({self.entries}) must have room for one segment ({self.segment})")
        if not 1 <= self.top_k <= self.entries:
            raise ConfigError(f"top_k ({self.top_k}) must lie between 1 and the entries ({self.entries})")
        if self.gate not in ("softmax", "learned"):
            raise ConfigError(f"gate must be softmax or learned, not {self.gate!r}")
        if not self.scale_init > 0:
            raise ConfigError(f"scale_init must be above 0, not {self.scale_init}")


class Memorizing(Memory):
    """See the top of this file."""

    config: MemorizingConfig

    def __init__(self, model: ModelConfig, config: MemorizingConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._layers = config.memory_layers(model)
        self._heads, self._size, self._dtype = model.num_kv_heads, model.head_dim, dtype
        self._queue = Fifo("memorized", self._layers, self._heads, config.entries, sinks=config.sinks)
        self._learned = config.gate == "learned"
        if self._learned:
            shape = (len(self._layers), model.num_heads)
            self.gate = nn.Parameter(torch.full(shape, float(config.gate_init), dtype=wide(dtype)))
            self.log_scale = nn.Parameter(torch.full(shape, math.log(config.scale_init), dtype=wide(dtype)))

    def spec(self) -> Spec:
        """Keys without rotation (normalised for the learned gate) and values, (layers, K, M, d) each."""
        return self._queue.spec(self._size, self._dtype)

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._layers

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """Attention to the k nearest of the filled entries; they are filled from the front."""
        if layer not in self._layers:
            return None
        filled = [self._queue.filled(folded) for folded in asked.folded]
        if not any(filled):
            return None
        index = self._layers[layer]
        keys, values = self._queue.read(index, state, max(filled))  # (B, K, C, d)
        query = self._query(index, asked)  # (B, K, G, t, d)
        out, mass = attend_nearest(query, keys, values, self.config.top_k, filled, scaled=self._learned)
        return Beside(
            heads=list(range(self._heads)),
            out=out,
            mass=None if self._learned else mass,
            gate=self._by_head(self.gate[index], asked.far).sigmoid() if self._learned else None,
            filled=None if all(filled) else torch.tensor(filled, device=keys.device) > 0,
        )

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """The segment takes the places of the oldest entries. No gradient passes: memories are constants (section 3.2)."""
        if layer not in self._layers:
            return
        keys = evicted.keys.detach()
        if self._learned:
            keys = F.normalize(keys, dim=-1)
        self._queue.push(self._layers[layer], state, evicted.starts, keys.to(self._dtype), evicted.values.detach())

    def report(self, state: MemoryState) -> Report:
        """Entries in use by layer."""
        return self._queue.report(self.config.evicted(state.positions[0]))

    def _query(self, index: int, asked: Asked) -> Tensor:
        """What is multiplied with keys to give scores, (B, K, G, t, d): wide and scaled where that is learned."""
        if not self._learned:
            return asked.far
        query = F.normalize(asked.plain.to(wide(self._dtype)), dim=-1)
        scaled: Tensor = query * self._by_head(self.log_scale[index], query).exp()
        return scaled

    def _by_head(self, parameter: Tensor, query: Tensor) -> Tensor:
        """(H,) as (1, K, G, 1, 1)."""
        return parameter.view(1, self._heads, query.shape[2], 1, 1)


MECHANISM = Mechanism("memorizing", MemorizingConfig, Memorizing)
