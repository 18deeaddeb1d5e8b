"""`infini`: one matrix for each key/value head takes in what leaves the ring, and a gate joins what it returns.

Infini-attention (arXiv 2404.07143) writes whole segments with the rules `linear` and `delta`. `gated_delta` writes token by
token, with unit keys and learned strengths (Gated DeltaNet, arXiv 2412.06464). Keys and queries carry no rotation: the memory
knows what was said, not where.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayeredConfig, Mechanism, Memory
from models.memory.delta_rule import gated_delta_rule
from models.memory.strength import above, check_writing, logit
from models.state import MemoryState, Spec, TensorSpec


@dataclass(frozen=True)
class InfiniConfig(LayeredConfig):
    """`rule` is how a fold writes. `gate_init` is β before training: the memory's share is sigmoid(β), by query head.

    `normalised`, for `delta` alone, counts a key in the normaliser only as far as it is new. `write_init` and `decay_init`, for
    `gated_delta` alone, are the strength of a write (0 to 1) and the part of the memory that fades with a token, before training.
    With a `decay_init` of 0 nothing ever fades, and training does not change that: DeltaNet's rule (arXiv 2406.06484).

    A write weaker than `write_floor` does not happen at all, which a sigmoid alone never reaches: with `decay_init` 0 what is
    stored then stays as it is while nothing worth a write is read. `write_cost` is, in training, the price in nats of a segment
    whose tokens are all written at full strength, and `waste_cost` that of one whose tokens are all written so although the task
    will not ask for any of them. These are for `gated_delta` alone.

    With `projections` keys and queries pass through maps of the memory's own, (d, d) a head, which begin as the identity: a
    pretrained model can then learn to store by other features than those it attends by.
    """

    rule: Literal["linear", "delta", "gated_delta"] = "delta"
    normalised: bool = False
    projections: bool = False
    gate_init: float = -10.0
    write_init: float = 0.8
    decay_init: float = 1e-5
    write_floor: float = 0.0
    write_cost: float = 0.0
    waste_cost: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("linear", "delta", "gated_delta"):
            raise ConfigError(f"rule must be linear, delta or gated_delta, not {self.rule!r}")
        if self.normalised and self.rule != "delta":
            raise ConfigError(f"normalised belongs to the rule delta: leave it out with {self.rule}")
        if not math.isfinite(self.gate_init):
            raise ConfigError(f"gate_init must be a finite number, not {self.gate_init}")
        if not 0 <= self.decay_init < 1:
            raise ConfigError(
                f"decay_init must be 0, for a memory that does not fade, or less than 1, not {self.decay_init}"
            )
        check_writing(self.write_init, self.write_cost, self.write_floor)
        if not 0 <= self.waste_cost < math.inf:
            raise ConfigError(f"waste_cost must be 0 or more nats, not {self.waste_cost}")


class Infini(Memory):
    """What the rules share: a matrix (d, d) for each memory layer and key/value head, and one gate a query head."""

    config: InfiniConfig

    def __init__(self, model: ModelConfig, config: InfiniConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._layers = config.memory_layers(model)
        self._kv_heads, self._groups, self._size = model.num_kv_heads, model.queries_per_kv, model.head_dim
        self._wide = wide(dtype)
        self.gate = self._parameter(model.num_heads, fill=config.gate_init)  # (layers, H)
        if config.projections:
            self.query_map = self._identity(model.num_heads)  # (layers, H, d, d)
            self.key_map = self._identity(self._kv_heads)

    def _parameter(self, *shape: int, fill: float = 0.0) -> nn.Parameter:
        return nn.Parameter(torch.full((len(self._layers), *shape), fill, dtype=self._wide))

    def _identity(self, heads: int) -> nn.Parameter:
        same = torch.eye(self._size, dtype=self._wide)
        return nn.Parameter(same.expand(len(self._layers), heads, -1, -1).clone())

    def spec(self) -> Spec:
        """The matrices, wide whatever the weights are: their sums grow with the session."""
        shape = (len(self._layers), self._kv_heads, self._size, self._size)
        return {"infini_memory": TensorSpec(shape, self._wide)}

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._layers

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """What the matrices return for the queries, joined by the gate."""
        filled = [count > self.config.sinks for count in asked.folded]  # sinks alone write nothing
        if layer not in self._layers or not any(filled):
            return None
        index = self._layers[layer]
        queries = asked.plain.to(self._wide)  # (B, K, G, t, d)
        if self.config.projections:
            queries = queries @ self.query_map[index].unflatten(0, (self._kv_heads, self._groups))
        out = self._recall(index, state, queries.flatten(2, 3))
        return Beside(
            heads=list(range(self._kv_heads)),
            out=out.view(asked.plain.shape),
            gate=self.gate[index].sigmoid().view(1, self._kv_heads, self._groups, 1, 1),
            filled=None if all(filled) else torch.tensor(filled, device=out.device),
        )

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Write the evicted tokens, all but the sinks."""
        if layer in self._layers:
            index, keys = self._layers[layer], evicted.keys
            if self.config.projections:
                keys = keys @ self.key_map[index]
            counted = evicted.counted[:, None, :, None].to(self._wide)  # (B, 1, S, 1)
            self._write(index, state, keys, evicted, counted)

    @abstractmethod
    def _recall(self, index: int, state: MemoryState, queries: Tensor) -> Tensor:
        """What the layer's matrices return for queries (B, K, n, d): values (B, K, n, d), 0 where nothing is stored."""

    @abstractmethod
    def _write(self, index: int, state: MemoryState, keys: Tensor, evicted: Evicted, counted: Tensor) -> None:
        """Take in keys (B, K, S, d), wide, and the values that left; what is not counted (B, 1, S, 1) must leave no trace."""


class SegmentInfini(Infini):
    """`linear` and `delta` as in the paper: a segment at once, every token against the memory before the segment."""

    def spec(self) -> Spec:
        """The matrices, and by key/value head the sum of all features that were written."""
        shape = (len(self._layers), self._kv_heads, self._size)
        return {**super().spec(), "infini_norm": TensorSpec(shape, self._wide)}

    def _recall(self, index: int, state: MemoryState, queries: Tensor) -> Tensor:
        features = feature(queries)
        memory, norm = state.read("infini_memory", index), state.read("infini_norm", index)
        return _share(features @ memory, features @ norm[..., None])

    def _write(self, index: int, state: MemoryState, keys: Tensor, evicted: Evicted, counted: Tensor) -> None:
        values = evicted.values.to(self._wide)
        memory, norm = state.read("infini_memory", index), state.read("infini_norm", index)
        features = feature(keys) * counted
        known = features @ norm[..., None]  # (B, K, S, 1)
        grown = norm + features.sum(dim=2)
        if self.config.rule == "delta":
            if self.config.normalised:
                grown, known = _grow(features, norm, known)
            values = values - _share(features @ memory, known)  # what the memory returns for the key already
        state.write("infini_memory", memory + features.transpose(-1, -2) @ values, index)
        state.write("infini_norm", grown, index)


class GatedDeltaInfini(Infini):
    """`gated_delta`: each token moves what its own key returns towards its value, however the text is cut into folds.

    How strongly it writes, and how much of the memory fades with it, is learned from its key and value.
    """

    def __init__(self, model: ModelConfig, config: InfiniConfig, dtype: torch.dtype) -> None:
        super().__init__(model, config, dtype)
        heads, seen = self._kv_heads, 2 * self._size
        self.write_weight = self._parameter(heads, seen)  # (layers, K, 2d), as is decay_weight
        self.write_offset = self._parameter(heads, fill=logit(config.write_init))
        if config.decay_init:
            self.decay_weight = self._parameter(heads, seen)
            self.decay_offset = self._parameter(heads, fill=logit(config.decay_init))

    def _recall(self, index: int, state: MemoryState, queries: Tensor) -> Tensor:
        return F.normalize(queries, dim=-1) @ state.read("infini_memory", index)

    def _write(self, index: int, state: MemoryState, keys: Tensor, evicted: Evicted, counted: Tensor) -> None:
        values = evicted.values.to(self._wide)
        seen = torch.cat((keys, values), dim=-1)  # (B, K, S, 2d)
        counted = counted[..., 0]
        write = (seen @ self.write_weight[index, :, :, None]).squeeze(-1) + self.write_offset[index, :, None]
        strength = above(write.sigmoid(), self.config.write_floor) * counted
        self._charge(strength, evicted.starts)
        log_decay = torch.zeros_like(write)
        if self.config.decay_init:
            decay = (seen @ self.decay_weight[index, :, :, None]).squeeze(-1) + self.decay_offset[index, :, None]
            log_decay = F.logsigmoid(-decay) * counted
        memory = gated_delta_rule(
            memory=state.read("infini_memory", index),
            keys=F.normalize(keys, dim=-1),
            values=values,
            write=strength,
            log_decay=log_decay,
        )
        state.write("infini_memory", memory, index)

    def _charge(self, strength: Tensor, starts: Tensor) -> None:
        """In training, what writing the tokens from positions `starts` (B,) on so strongly (B, K, S) costs."""
        if self.losses is None:
            return
        if self.config.write_cost:
            self.losses.append(self.config.write_cost / len(self._layers) * strength.mean())
        if self.config.waste_cost and self.marked is not None:
            wasted = strength * ~self.marked.at(starts, strength.shape[2])[:, None]
            self.losses.append(self.config.waste_cost / len(self._layers) * wasted.mean())


def feature(x: Tensor) -> Tensor:
    """ELU + 1, the paper's σ. Taken apart, so that far below zero it stays positive in float32, where ELU rounds to −1."""
    return x.clamp(max=0).exp() + x.relu()


def _share(total: Tensor, weight: Tensor) -> Tensor:
    """total (..., d) over weight (..., 1); 0 where there is no weight, with gradients that are finite."""
    return total / torch.where(weight > 0, weight, 1)


def _grow(features: Tensor, norm: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The normaliser (B, K, d), grown by what is new in a segment, and what weighs the returns of its own keys (B, K, S, 1).

    `own` is what a key would weigh if the segment were all there is; the part of it that the normaliser does not have yet
    is new: for a segment of one token, clip(1 − φz/‖φ‖², 0, 1). What is taken out is weighed by no less than `own`: the keys
    of a segment that point the same way would else together take out more than there is.
    """
    own = features @ features.sum(dim=2)[..., None]  # (B, K, S, 1)
    new = (1 - _share(known, own)).clamp(0, 1)
    grown = norm + (features * new).sum(dim=2)
    return grown, torch.maximum(features @ grown[..., None], own)


def _build(model: ModelConfig, config: InfiniConfig, dtype: torch.dtype) -> Infini:
    return (GatedDeltaInfini if config.rule == "gated_delta" else SegmentInfini)(model, config, dtype)


MECHANISM = Mechanism("infini", InfiniConfig, _build)
