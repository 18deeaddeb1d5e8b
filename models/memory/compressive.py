"""`compressive`: what leaves the ring is compressed c to 1 and kept first in, first out (arXiv 1911.05507).

Every group of c neighbouring tokens becomes one key and one value: their mean, their maximum, or what a learned convolution of
kernel and stride c makes of them. The n_cm newest are seen in the same softmax as the ring, all at distance W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayeredConfig, Mechanism, Memory, Report
from models.memory.fifo import Fifo
from models.state import MemoryState, Spec


@dataclass(frozen=True)
class CompressiveConfig(LayeredConfig):
    """`rate` is c; `entries` is n_cm, for each key/value head.

    `kernels` is what the convolution begins with: the "mean" of the group, or with "turns" one of its tokens, another one from head
    to head and layer to layer, which is ours. An entry that is a mean cannot say in which order its tokens stood, and no head
    that copies from it can do so right; of each token some heads keep it as it was.

    `sharpen_beyond` is the number of entries m from which on, with n of them, the memory's scores are multiplied by log n / log m,
    and log(n / m) is taken from them; 0: never. A softmax over more entries than were taught gives too much to the many that are
    merely similar, and too little to the ring. The factor is that of Scalable-Softmax (arXiv 2501.19399; there for all of
    attention, and learned); what is taken off, which is ours, lets n entries that say nothing weigh what m of them do.

    `task_gradient` lets the task's own loss reach the convolution through the entries, and the network below them. In the
    paper it does not: the convolution learns from the attention-reconstruction loss alone.
    """

    rate: int = 4
    entries: int = 512
    compression: Literal["mean", "max", "conv"] = "mean"
    kernels: Literal["mean", "turns"] = "mean"
    sharpen_beyond: int = 0
    task_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < 1 or self.segment % self.rate:
            raise ConfigError(f"rate ({self.rate}) must divide the segment ({self.segment})")
        if self.entries < self.segment // self.rate:
            raise ConfigError(
                f"entries ({self.entries}) must have room for one compressed segment ({self.segment // self.rate})"
            )
        if self.compression not in ("mean", "max", "conv"):
            raise ConfigError(f"compression must be mean, max or conv, not {self.compression!r}")
        if self.kernels not in ("mean", "turns"):
            raise ConfigError(f"kernels must be mean or turns, not {self.kernels!r}")
        if self.kernels != "mean" and self.compression != "conv":
            raise ConfigError(f'kernels belong to the compression "conv", not to {self.compression!r}: set that, too')
        if self.sharpen_beyond < 0 or self.sharpen_beyond == 1:
            raise ConfigError(f"sharpen_beyond must be 0 (never) or at least 2 entries, not {self.sharpen_beyond}")

    def log_excess(self, entries: int) -> float:
        """log(n / m) of so many entries n and the m of `sharpen_beyond`; 0 where they are no more."""
        return math.log(entries / self.sharpen_beyond) if 0 < self.sharpen_beyond < entries else 0.0

    @property
    def reach(self) -> int:
        """Tokens before its segment that a query of one layer sees for certain, one by one or compressed."""
        return self.window + self.rate * self.entries

    @classmethod
    def as_large_as(cls, ring: MemoryConfig, window: int, **settings: Any) -> Self:
        """A window of that many tokens, and for the rest of another's ring as many compressed entries: never more bytes.

        Raises `ConfigError` if nothing would be left for entries.
        """
        shared = {"segment": ring.segment, "sinks": ring.sinks}
        return cls(window=window, entries=ring.window - window, **{**shared, **settings})


class Compressive(Memory):
    """See the top of this file."""

    config: CompressiveConfig

    def __init__(self, model: ModelConfig, config: CompressiveConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._layers = config.memory_layers(model)
        self._heads, self._size, self._dtype = model.num_kv_heads, model.head_dim, dtype
        self._queue = Fifo(
            "compressed", self._layers, self._heads, config.entries, rate=config.rate, sinks=config.sinks
        )
        if config.compression == "conv":
            shares = torch.full((len(self._layers), self._heads, config.rate), 1 / config.rate, dtype=wide(dtype))
            if config.kernels == "turns":
                turns = torch.arange(len(self._layers))[:, None] + torch.arange(self._heads)  # (layers, K)
                shares = F.one_hot(config.rate - 1 - turns % config.rate, config.rate).to(wide(dtype))
            kernel = shares[..., None, None] * torch.eye(self._size, dtype=wide(dtype))  # (layers, K, c, d, d)
            self.key_kernel = nn.Parameter(kernel)
            self.value_kernel = nn.Parameter(kernel.clone())

    def spec(self) -> Spec:
        """Keys without rotation and values, (layers, K, n_cm, d) each."""
        return self._queue.spec(self._size, self._dtype)

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._layers

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """The filled entries; they are filled from the front."""
        if layer not in self._layers:
            return None
        filled = [self._queue.filled(folded) for folded in asked.folded]
        if not any(filled):
            return None
        visible = None
        if min(filled) < max(filled):
            places = torch.arange(max(filled), device=state.device)
            seen = places < torch.tensor(filled, device=state.device)[:, None]  # (B, C)
            visible = seen[:, None].expand(-1, self._heads, -1)
        keys, values = self._queue.read(self._layers[layer], state, max(filled))
        far = Far(heads=list(range(self._heads)), keys=keys, values=values, visible=visible)
        excesses = [self.config.log_excess(count) for count in filled]
        if not any(excesses):
            return far
        excess = asked.far.new_tensor(excesses, dtype=wide(asked.far.dtype))[:, None, None, None]  # (B, 1, 1, 1)
        sharper = 1 + excess / math.log(self.config.sharpen_beyond)
        query = (asked.far * sharper[..., None]).to(asked.far.dtype)
        return replace(far, query=query, offset=-excess.expand(asked.far.shape[:-1]))

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Compress the segment; its groups take the places of the oldest."""
        if layer not in self._layers:
            return
        index = self._layers[layer]
        keys = self._compress(index, "key", evicted.keys, evicted.counted)  # (B, K, S/c, d)
        values = self._compress(index, "value", evicted.values, evicted.counted)
        if not self.config.task_gradient:
            keys, values = keys.detach(), values.detach()
        self._queue.push(index, state, evicted.starts, keys.to(self._dtype), values.to(self._dtype))
        if self.losses is not None and evicted.queries is not None and self.config.compression == "conv":
            self.losses.append(self._reconstruction(index, evicted, evicted.queries))

    def report(self, state: MemoryState) -> Report:
        """Entries in use by layer."""
        return self._queue.report(self.config.evicted(state.positions[0]))

    def _compress(self, index: int, name: Literal["key", "value"], x: Tensor, counted: Tensor) -> Tensor:
        """x (B, K, S, d) to (B, K, S/c, d), wide. Sinks are left out; a group of sinks alone gives zeros."""
        rate = self.config.rate
        groups = x.to(wide(self._dtype)).unflatten(2, (-1, rate))  # (B, K, S/c, c, d)
        seen = counted.unflatten(1, (-1, rate))[:, None, :, :, None]  # (B, 1, S/c, c, 1)
        pooled: Tensor
        if self.config.compression == "max":
            pooled = groups.masked_fill(~seen, -torch.inf).amax(dim=3).masked_fill(~seen.any(dim=3), 0)
            return pooled
        groups = groups.masked_fill(~seen, 0)
        share = seen.sum(dim=3).clamp_min(1)  # (B, 1, S/c, 1): tokens that a group is made of
        if self.config.compression == "mean":
            pooled = groups.sum(dim=3) / share
            return pooled
        kernel: Tensor = self.get_parameter(f"{name}_kernel")[index]  # (K, c, d, d)
        # Where sinks are left out, the others weigh the more, as in a mean.
        pooled = groups.flatten(3) @ kernel.flatten(1, 2) * (rate / share)  # (B, K, S/c, c*d) @ (K, c*d, d)
        return pooled

    def _reconstruction(self, index: int, evicted: Evicted, queries: Tensor) -> Tensor:
        """Attention-reconstruction loss (algorithm 2): what the network's queries get of the segment, and of its compression.

        Content alone counts (nothing is rotated), and gradients reach the convolution only.
        """
        keys, values, counted = evicted.keys.detach(), evicted.values.detach(), evicted.counted
        query = queries.detach().to(keys.dtype).flatten(2, 3)  # (B, K, G*t, d)
        groups = counted.unflatten(1, (-1, self.config.rate)).any(dim=2)  # (B, S/c)
        exact = _content(query, keys, values.to(keys.dtype), counted)
        compressed = _content(
            query,
            self._compress(index, "key", keys, counted),
            self._compress(index, "value", values, counted),
            groups,
        )
        apart = (exact - compressed).square().mean(dim=(1, 2, 3))
        return (apart * counted.any(dim=1)).mean()


def _content(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention of query (B, K, Q, d) on what is `seen` (B, N) of keys and values (B, K, N, d)."""
    lowest = torch.finfo(query.dtype).min  # and not -inf: a row that sees nothing stays finite
    bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, lowest)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias[:, None, None, :])


MECHANISM = Mechanism("compressive", CompressiveConfig, Compressive)
