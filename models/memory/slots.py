"""`slots`: retrieval heads keep what leaves the ring in a bounded set of slots; the least important are overwritten.

Only few heads of a pretrained model look far back (DuoAttention, arXiv 2410.10819). Those heads keep un-rotated keys and values;
a query sees them at one fixed far distance in the same softmax as the ring. Which tokens stay is decided while the text
streams, by the leverage of their keys: the squared Mahalanobis distance to the running mean and covariance of the head's own
keys, smoothed by the maximum over neighbours, fixed at eviction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Asked, Beside, Far
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayerReport, Mechanism, Memory, Report
from models.state import MemoryState, Spec, TensorSpec


@dataclass(frozen=True)
class SlotsConfig(MemoryConfig):
    """`heads` are (layer, key/value head) pairs that keep slots, as calibration found them; `slots` is C, for each.

    `ridge` keeps the covariance invertible; `reach` is how many neighbours on each side lend a token their importance.
    """

    heads: tuple[tuple[int, int], ...] = ()
    slots: int = 2048
    slot_dtype: Literal["bf16", "int8", "same"] = "int8"
    ridge: float = 1e-2
    reach: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads:
            raise ConfigError("slots need retrieval heads: calibrate the model, or choose the window memory")
        if self.slots < 1:
            raise ConfigError(f"slots must be at least 1, not {self.slots}")
        if self.slot_dtype not in ("bf16", "int8", "same"):
            raise ConfigError(f"slot_dtype must be bf16, int8 or same, not {self.slot_dtype!r}")
        if not self.ridge > 0:
            raise ConfigError(f"ridge must be above 0, not {self.ridge}")
        if not 0 <= self.reach <= min(self.window, self.segment):
            raise ConfigError(f"reach ({self.reach}) must lie between 0 and the segment ({self.segment})")


class Slots(Memory):
    """See the top of this file."""

    config: SlotsConfig

    def __init__(self, model: ModelConfig, config: SlotsConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        heads = sorted(set(config.heads))
        for layer, head in heads:
            if not (0 <= layer < model.num_layers and 0 <= head < model.num_kv_heads):
                raise ConfigError(
                    f"the model has no key/value head {head} in layer {layer}: calibrate this model itself"
                )
        self.lookahead = config.reach
        self._size, self._count = model.head_dim, len(heads)
        self._wide = wide(dtype)
        self._dtype = {"bf16": torch.bfloat16, "int8": torch.int8, "same": dtype}[config.slot_dtype]
        self._heads: dict[int, list[int]] = {}
        self._range: dict[int, slice] = {}
        for index, (layer, head) in enumerate(heads):
            first = self._range[layer].start if layer in self._range else index
            self._range[layer] = slice(first, index + 1)
            self._heads.setdefault(layer, []).append(head)

    def spec(self) -> Spec:
        """R heads of C slots each; statistics wide; which token each slot holds, so that it can be shown."""
        count, slots, size = self._count, self.config.slots, self._size
        spec = {
            "slot_keys": TensorSpec((count, slots, size), self._dtype),
            "slot_values": TensorSpec((count, slots, size), self._dtype),
            "slot_score": TensorSpec((count, slots), self._wide, fill=-torch.inf),
            "slot_position": TensorSpec((count, slots), torch.int32),
            "slot_token": TensorSpec((count, slots), torch.int32),
            "key_mean": TensorSpec((count, size), self._wide),
            "key_scatter": TensorSpec((count, size, size), self._wide),
            "last_scores": TensorSpec((count, self.config.reach), self._wide, fill=-torch.inf),
        }
        if self._dtype == torch.int8:
            spec["slot_key_scale"] = TensorSpec((count, slots), self._wide)
            spec["slot_value_scale"] = TensorSpec((count, slots), self._wide)
        return spec

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """The filled slots of the layer's retrieval heads; they are filled from the front."""
        if layer not in self._heads:
            return None
        filled = [min(self.config.slots, max(0, count - self.config.sinks)) for count in asked.folded]
        if not any(filled):  # only sinks were evicted so far; the fused kernel must not see zero keys
            return None
        heads, used = self._range[layer], slice(0, max(filled))
        quantized = self._dtype == torch.int8
        alike = min(filled) == max(filled)
        return Far(
            heads=self._heads[layer],
            keys=state.read("slot_keys", heads, used),
            values=state.read("slot_values", heads, used),
            visible=None if alike else state.read("slot_score", heads, used) > -torch.inf,
            key_scale=state.read("slot_key_scale", heads, used) if quantized else None,
            value_scale=state.read("slot_value_scale", heads, used) if quantized else None,
        )

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Score the evicted tokens, then keep the C most important of old and new, in the order of the text."""
        if layer not in self._heads:
            return
        heads = self._range[layer]
        keys = evicted.keys[:, self._heads[layer]]  # (B, r, S + reach, d)
        score = self._importance(heads, state, evicted, keys)  # (B, r, S)
        length = score.shape[-1]
        kept_score = torch.cat((state.read("slot_score", heads), score), dim=-1)  # (B, r, C + S)
        # Neighbours share the maximum of their scores, so ties are common: the older token stays.
        chosen = kept_score.sort(dim=-1, descending=True, stable=True).indices[..., : self.config.slots]
        # Slots keep the order of the text, empty ones last: the state is then a function of the tokens alone.
        empty = kept_score.gather(-1, chosen) == -torch.inf
        chosen = (chosen + empty * kept_score.shape[-1]).sort(dim=-1).values % kept_score.shape[-1]
        position = (evicted.starts[:, None] + torch.arange(length, device=score.device)).to(torch.int32)
        added = {
            "slot_score": score,
            "slot_position": position[:, None].expand_as(score),
            "slot_token": evicted.tokens[:, None].expand_as(score),
            **self._stored("slot_key", keys[:, :, :length]),
            **self._stored("slot_value", evicted.values[:, self._heads[layer]].to(self._wide)),
        }
        for name, new in added.items():
            both = torch.cat((state.read(name, heads), new), dim=2)
            index = chosen if both.dim() == 3 else chosen[..., None].expand(-1, -1, -1, both.shape[-1])
            state.write(name, both.gather(2, index), heads)

    def report(self, state: MemoryState) -> Report:
        """Slots in use by layer, and the text that at least half of the heads still hold."""
        filled = state.read("slot_score")[0] > -torch.inf  # (R, C)
        layers = tuple(
            LayerReport(layer, tuple(heads), self.config.slots, int(filled[self._range[layer]].sum()))
            for layer, heads in self._heads.items()
        )
        position = state.read("slot_position")[0][filled].long()
        token = state.read("slot_token")[0][filled]
        places, order, votes = position.unique(return_inverse=True, return_counts=True)
        held = torch.zeros_like(places, dtype=token.dtype).scatter_(0, order, token)
        agreed = votes * 2 >= self._count
        return Report(layers, _runs(places[agreed].tolist(), held[agreed].tolist()))

    def _stored(self, name: str, x: Tensor) -> dict[str, Tensor]:
        """x (B, r, S, d) as it lies in the state: rounded, or as int8 with one scale a vector."""
        if self._dtype != torch.int8:
            return {f"{name}s": x.to(self._dtype)}
        scale = x.abs().amax(dim=-1).clamp_min(1e-12) / 127
        return {f"{name}s": (x / scale[..., None]).round().to(torch.int8), f"{name}_scale": scale}

    def _importance(self, heads: slice, state: MemoryState, evicted: Evicted, keys: Tensor) -> Tensor:
        """Smoothed leverage of the evicted tokens (B, r, S). Updates the running mean and scatter of the keys.

        The sinks are left out of both: they never leave the model's sight, and their keys are extreme.
        """
        reach, sinks = self.config.reach, self.config.sinks
        length = keys.shape[2] - reach
        position = evicted.starts[:, None] + torch.arange(length + reach, device=keys.device)  # (B, S + reach)
        counted = (position >= sinks).to(keys.dtype)[:, None, :, None]  # (B, 1, S + reach, 1)
        mean, scatter, count = self._statistics(
            heads, state, keys[:, :, :length], counted[:, :, :length], evicted.starts
        )
        centred = keys - mean[:, :, None]
        ridge = self.config.ridge * torch.eye(self._size, device=keys.device)
        factor = torch.linalg.cholesky(scatter / count[:, None, None, None] + ridge)
        whitened = torch.linalg.solve_triangular(factor, centred.transpose(-1, -2), upper=False)
        score = whitened.square().sum(dim=2)  # (B, r, S + reach)
        score = score.masked_fill(counted[..., 0] == 0, -torch.inf)
        around = torch.cat((state.read("last_scores", heads), score), dim=-1)
        state.write("last_scores", score[..., length - reach : length], heads)
        smoothed = F.max_pool1d(around.flatten(0, 1), 2 * reach + 1, stride=1).view(*score.shape[:2], length)
        return smoothed.masked_fill(counted[:, :, :length, 0] == 0, -torch.inf)

    def _statistics(
        self, heads: slice, state: MemoryState, keys: Tensor, counted: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge a segment into the running mean (B, r, d) and scatter (B, r, d, d): Chan, Golub & LeVeque 1983."""
        sinks = self.config.sinks
        before = (starts - sinks).clamp_min(0).to(keys.dtype)  # (B,) tokens counted so far
        added = counted.sum(dim=(1, 2, 3))
        count = before + added
        old_mean, old_scatter = state.read("key_mean", heads), state.read("key_scatter", heads)
        new_mean = (keys * counted).sum(dim=2) / added[:, None, None].clamp_min(1)
        centred = (keys - new_mean[:, :, None]) * counted
        shift = new_mean - old_mean
        weight = (added / count.clamp_min(1))[:, None, None]
        mean = old_mean + shift * weight
        between = (before * added / count.clamp_min(1))[:, None, None, None]
        scatter = old_scatter + centred.transpose(-1, -2) @ centred
        scatter = scatter + between * shift[..., :, None] * shift[..., None, :]
        state.write("key_mean", mean, heads)
        state.write("key_scatter", scatter, heads)
        return mean, scatter, count.clamp_min(1)


def _runs(positions: list[int], tokens: list[int]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Neighbouring positions joined: (first position, token ids)."""
    runs: list[tuple[int, list[int]]] = []
    for position, token in zip(positions, tokens, strict=True):
        if runs and position == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(token)
        else:
            runs.append((position, [token]))
    return tuple((begin, tuple(run)) for begin, run in runs)


MECHANISM = Mechanism("slots", SlotsConfig, Slots)
