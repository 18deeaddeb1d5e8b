"""`slots`: retrieval heads keep what leaves the ring in a bounded set of slots; the least important are overwritten.

Only few heads of a pretrained model look far back (DuoAttention, arXiv 2410.10819). Those heads keep un-rotated keys and values;
a query sees them at one fixed far distance in the same softmax as the ring. Which tokens stay is decided while the text streams
(`importance.py`), and fixed at eviction; how a query asks for them may be learned (`look.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models import native
from models.asked import Asked, Before, Beside, Far, Grid, Recent, of_heads
from models.attention import pack_codes
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayerReport, Mechanism, Memory, Report
from models.memory.beginnings import Beginnings
from models.memory.importance import Importance, Learned, Leverage
from models.memory.look import TRAIL, Look
from models.state import MemoryState, Spec, TensorSpec

WORTHLESS = -1e30
"""The score of what was said anew: it is the first to be overwritten, and until there is need it stays."""


@dataclass(frozen=True)
class SlotsConfig(MemoryConfig):
    """`heads` are (layer, key/value head) pairs that keep slots, as calibration found them; `slots` is C, for each.

    `importance` is how they choose what stays. `learned` needs an adapter, and `listens` is the layer whose output it foretells
    from. For `leverage`, `ridge` keeps the covariance invertible, and `reach` neighbours on each side lend a token theirs. Where
    tokens that end sentences are named (`ends`), what is said behind a sentence's beginning replaces what was said behind the same.
    """

    window: int = 384
    segment: int = 128
    heads: tuple[tuple[int, int], ...] = ()
    slots: int = 1944
    slot_dtype: Literal["bf16", "int8", "int4", "same"] = "int8"
    importance: Literal["leverage", "learned"] = "leverage"
    listens: int = 0
    ridge: float = 1e-2
    reach: int = 6
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads:
            raise ConfigError("slots need retrieval heads: calibrate the model, or choose the window memory")
        if self.slots < 1:
            raise ConfigError(f"slots must be at least 1, not {self.slots}")
        if self.slot_dtype not in ("bf16", "int8", "int4", "same"):
            raise ConfigError(f"slot_dtype must be bf16, int8, int4 or same, not {self.slot_dtype!r}")
        if self.importance not in ("leverage", "learned"):
            raise ConfigError(f"importance must be leverage or learned, not {self.importance!r}")
        if not self.ridge > 0:
            raise ConfigError(f"ridge must be above 0, not {self.ridge}")
        if self.importance == "learned" and min(self.window, self.segment) < TRAIL:
            raise ConfigError(f"learned slots need a window and segments of at least {TRAIL} tokens")
        if not 0 <= self.reach <= min(self.window, self.segment):
            raise ConfigError(f"reach ({self.reach}) must lie between 0 and the segment ({self.segment})")

    def depth(self, model: ModelConfig) -> int:
        """Up to the last layer with slots, or the one that is listened to."""
        return max(self.listens, *(layer for layer, _ in self.heads)) + 1


class Slots(Memory):
    """See the top of this file."""

    config: SlotsConfig
    still = True

    def __init__(self, model: ModelConfig, config: SlotsConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        heads = sorted(set(config.heads))
        for layer, head in heads:
            if not (0 <= layer < model.num_layers and 0 <= head < model.num_kv_heads):
                raise ConfigError(
                    f"the model has no key/value head {head} in layer {layer}: calibrate this model itself"
                )
        self._size, self._count = model.head_dim, len(heads)
        self._wide = wide(dtype)
        self._aged: tuple[tuple[tuple[int, ...], torch.device], Tensor] | None = None
        stored = {"bf16": torch.bfloat16, "int8": torch.int8, "int4": torch.uint8, "same": dtype}
        self._dtype, self._packed = stored[config.slot_dtype], config.slot_dtype == "int4"
        self._heads: dict[int, list[int]] = {}
        self._range: dict[int, slice] = {}
        for index, (layer, head) in enumerate(heads):
            first = self._range[layer].start if layer in self._range else index
            self._range[layer] = slice(first, index + 1)
            self._heads.setdefault(layer, []).append(head)
        self.importance: Importance
        if config.importance == "learned":
            if not 0 <= config.listens < model.num_layers:
                raise ConfigError(f"listens must name a layer from 0 to {model.num_layers - 1}, not {config.listens}")
            self.importance, self.listens = Learned(config, len(heads), model.hidden_size, self._wide), config.listens
            self.look: Look | None = Look(len(heads), model.queries_per_kv, self._size, self._wide)
            self.looks_back = TRAIL
        else:
            self.look = None
            self.importance = Leverage(config, len(heads), self._size, self._wide, config.ridge, config.reach)
        self.lookahead = self.importance.lookahead
        if not all(0 <= token < model.vocab_size for token in config.ends):
            raise ConfigError(f"ends must be token ids below {model.vocab_size}")
        self.beginnings = Beginnings(config.ends, model.vocab_size) if config.ends else None

    def hear(self, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
        """What the importance is foretold from."""
        self.importance.hear(hidden, positions, state)

    def spec(self) -> Spec:
        """R heads of C slots each; statistics wide; which token each slot holds, so that it can be shown.

        `slot_trail` are the last evicted keys as they were, which the next ones trail.
        """
        count, slots, size = self._count, self.config.slots, self._size
        entries = TensorSpec((count, slots, size // 2 if self._packed else size), self._dtype)
        spec = {
            "slot_keys": entries,
            "slot_values": entries,
            "slot_score": TensorSpec((count, slots), self._wide, fill=-torch.inf),
            "slot_position": TensorSpec((count, slots), torch.int32),
            "slot_token": TensorSpec((count, slots), torch.int32),
            **self.importance.spec(),
        }
        if self.beginnings is not None:
            spec["slot_said"] = TensorSpec((count, slots), torch.int32)
        if self.look is not None:
            spec["slot_trail"] = TensorSpec((count, TRAIL, size), self._wide)
        if self._quantized:
            # Four bits are right to a tenth: a scale need not be better than bfloat16 beside them.
            scale = TensorSpec((count, slots), torch.bfloat16 if self._packed else self._wide)
            spec |= {"slot_key_scale": scale, "slot_value_scale": scale}
        if self._packed:
            grid = TensorSpec((count, 2, size), self._wide)
            spec |= {"key_grid": grid, "value_grid": grid}
        return spec

    @property
    def _quantized(self) -> bool:
        return self._dtype in (torch.int8, torch.uint8)

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._heads

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """The filled slots of the layer's retrieval heads; they are filled from the front."""
        if layer not in self._heads:
            return None
        if isinstance(asked.folded, Tensor):
            filled, used, alike = None, slice(None), False
        else:
            filled = self.kept(asked.folded)
            if not any(filled):  # only sinks were evicted so far; the fused kernel must not see zero keys
                return None
            used, alike = slice(0, max(filled)), min(filled) == max(filled)
        heads = self._range[layer]
        query, offset, slope, age = None, None, None, None
        if self.look is not None:
            if native.suits_look(asked, self.look):
                query, offset, slope = native.look_far(asked, self.look, self._heads[layer], heads)
            else:
                assert asked.recent is not None
                before = asked.recent().of(self._heads[layer]).before(TRAIL)
                query, offset, slope = self.look(of_heads(asked.far, self._heads[layer]), before, heads)
            age = self._unasked_ages(asked.folded) if filled is None else self._ages(filled, query.device)
        keys, values = state.read("slot_keys", heads, used), state.read("slot_values", heads, used)
        return Far(
            heads=self._heads[layer],
            keys=keys,
            values=values,
            visible=None if alike else state.read("slot_score", heads, used) > -torch.inf,
            key_scale=state.read("slot_key_scale", heads, used).to(self._wide) if self._quantized else None,
            value_scale=state.read("slot_value_scale", heads, used).to(self._wide) if self._quantized else None,
            query=query,
            offset=offset,
            slope=slope,
            age=age,
            key_grid=_grid(state.read("key_grid", heads)) if self._packed else None,
            value_grid=_grid(state.read("value_grid", heads)) if self._packed else None,
        )

    def keeps(self) -> native.Kept | None:
        """See `Memory.keeps`."""
        scaled, packed = self._quantized, self._packed
        return native.Kept(
            parts={layer: (heads, self._range[layer]) for layer, heads in self._heads.items()},
            keys="slot_keys",
            values="slot_values",
            score="slot_score",
            position="slot_position",
            token="slot_token",
            key_scale="slot_key_scale" if scaled else None,
            value_scale="slot_value_scale" if scaled else None,
            key_grid="key_grid" if packed else None,
            value_grid="value_grid" if packed else None,
            look=self.look,
            trail=None if self.look is None else "slot_trail",
            said=None if self.beginnings is None else "slot_said",
        )

    def kept(self, folded: Sequence[int]) -> list[int]:
        """Slots in use: of all heads equally many."""
        return [min(self.config.slots, max(0, count - self.config.sinks)) for count in folded]

    def _unasked_ages(self, folded: Sequence[int] | Tensor) -> Tensor:
        """`_ages` of all slots, without waiting for the device."""
        assert isinstance(folded, Tensor)
        count = (folded - self.config.sinks).clamp(0, self.config.slots)
        return _ages_of(count.to(self._wide), self.config.slots)

    def _ages(self, filled: list[int], device: torch.device) -> Tensor:
        """(B, max(filled)), wide: 0 for the newest slot of a session, nearly 1 for its oldest, anything where nothing is stored."""
        wanted, known = (tuple(filled), device), self._aged
        if known is None or known[0] != wanted or torch.is_grad_enabled():  # the same in all layers
            count = torch.tensor(filled, dtype=self._wide, device=device)
            self._aged = known = wanted, _ages_of(count, max(filled))
        return known[1]

    def worth(self, state: MemoryState, starts: Tensor, counted: Tensor) -> Tensor | None:
        """See `Memory.worth`."""
        return self.importance.known(state, starts, counted)

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Score the evicted tokens, then keep the C most important of old and new, in the order of the text."""
        if layer not in self._heads:
            return
        heads = self._range[layer]
        score = self.importance.scores(heads, state, evicted, self._heads[layer])  # (B, r, S)
        length, keeps = score.shape[-1], self.keeps()
        if keeps is not None and native.suits_fold(evicted, score):
            native.fold(keeps, layer, state, evicted, score, self.config.sinks)
            return
        keys = evicted.keys[:, self._heads[layer]]  # (B, r, S + reach, d)
        kept_score = torch.cat((state.read("slot_score", heads), score), dim=-1)  # (B, r, C + S)
        if self.beginnings is not None:
            assert evicted.said is not None
            said = evicted.said[:, None].expand(-1, score.shape[1], -1)
            again = self.beginnings.again(state.read("slot_said", heads), said, score > -torch.inf)
            kept_score = kept_score.masked_fill(torch.cat(again, dim=-1) & (kept_score > -torch.inf), WORTHLESS)
        # Neighbours share the maximum of their scores, so ties are common: the older token stays.
        chosen = kept_score.sort(dim=-1, descending=True, stable=True).indices[..., : self.config.slots]
        # Slots keep the order of the text, empty ones last: the state is then a function of the tokens alone.
        empty = kept_score.gather(-1, chosen) == -torch.inf
        chosen = (chosen + empty * kept_score.shape[-1]).sort(dim=-1).values % kept_score.shape[-1]
        position = (evicted.starts[:, None] + torch.arange(length, device=score.device)).to(torch.int32)
        values = evicted.values[:, self._heads[layer]].to(self._wide)
        keys = keys[:, :, :length]
        if self.look is not None:
            before = self._before(heads, state, evicted.starts, keys)
            state.write("slot_trail", keys[:, :, -TRAIL:], heads)
            keys = self._far_keys(self.look, heads, keys, before)
        if self._packed:
            keys = self._on_grid("key_grid", heads, state, evicted, keys)
            values = self._on_grid("value_grid", heads, state, evicted, values)
        added = {
            "slot_score": kept_score[..., -length:],
            "slot_position": position[:, None].expand_as(score),
            "slot_token": evicted.tokens[:, None].expand_as(score),
            **self._stored("slot_key", keys),
            **self._stored("slot_value", values),
        }
        if self.look is not None:
            added |= self._also_kept(before)
        if self.beginnings is not None:
            added["slot_said"] = said
        state.write("slot_score", kept_score[..., :-length], heads)
        for name, new in added.items():
            both = torch.cat((state.read(name, heads), new), dim=2)
            words = _in_words(both)
            index = chosen if words.dim() == 3 else chosen[..., None].expand(-1, -1, -1, words.shape[-1])
            state.write(name, words.gather(2, index).view(both.dtype), heads)

    def _before(self, heads: slice, state: MemoryState, starts: Tensor, keys: Tensor) -> Before:
        """What comes before evicted keys (B, r, S, d)."""
        positions = starts[:, None] + torch.arange(-TRAIL, keys.shape[2], device=starts.device)
        return Recent(torch.cat((state.read("slot_trail", heads), keys), dim=2), positions >= 0).before(TRAIL)

    def _far_keys(self, look: Look, heads: slice, keys: Tensor, before: Before) -> Tensor:
        """What is kept of evicted keys (B, r, S, d), wide."""
        return look.kept(keys, before, heads)

    def _also_kept(self, before: Before) -> dict[str, Tensor]:
        """What else is kept of evicted tokens, by tensor, (B, r, S, …): nothing but while the look is taught."""
        return {}

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

    def _on_grid(self, name: str, heads: slice, state: MemoryState, evicted: Evicted, x: Tensor) -> Tensor:
        """x (B, r, S, d) from the head's centre and in units of its spread: both those of the first tokens it ever took."""
        counted = evicted.counted[:, None, :, None]
        first = (evicted.counted.any(dim=1) & (evicted.starts <= self.config.sinks))[:, None, None, None]
        number = counted.sum(dim=2).clamp_min(1)  # (B, 1, 1)
        centre = (x * counted).sum(dim=2) / number
        spread = (((x - centre[:, :, None]) * counted).square().sum(dim=2) / number).sqrt()
        grid = torch.where(first, torch.stack((centre, spread.clamp_min(1e-6)), dim=2), state.read(name, heads))
        state.write(name, grid, heads)
        return (x - grid[:, :, :1]) / grid[:, :, 1:]

    def _stored(self, name: str, x: Tensor) -> dict[str, Tensor]:
        """x (B, r, S, d) as it lies in the state: rounded, or as integers with one scale a vector."""
        if not self._quantized:
            return {f"{name}s": x.to(self._dtype)}
        scale = x.abs().amax(dim=-1).clamp_min(1e-12) / (15 if self._packed else 127)
        if self._packed:
            scale = scale.to(torch.bfloat16)
        steps = x / scale.to(self._wide)[..., None]  # what a reader will multiply by
        return {f"{name}s": pack_codes(steps) if self._packed else steps.round().to(torch.int8), f"{name}_scale": scale}


def _ages_of(count: Tensor, places: int) -> Tensor:
    """(B, places): the age of each place where so many (B,), wide, are filled."""
    place = torch.arange(1, places + 1, device=count.device)
    return (count[:, None] - place) / count[:, None].clamp_min(1)


def _grid(x: Tensor) -> Grid:
    """Of centre and spread as they lie in the state, (B, r, 2, d)."""
    centre, spread = x.unbind(dim=2)
    return Grid(centre, spread)


def _in_words(x: Tensor) -> Tensor:
    """Vectors (B, r, n, d) as 64-bit words where they are whole ones: a gather then copies eight bytes at a time."""
    return x.view(torch.int64) if x.dim() == 4 and x.shape[-1] * x.element_size() % 8 == 0 else x


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
