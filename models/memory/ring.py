"""The local ring every mechanism shares: exact attention over the last W to W + S tokens, and eviction by segments.

Position p lies at place p mod (W + S), behind the places of the sinks. A query in segment m sees every token from
m*S - W up to itself: at least W of them, at most W + S, and never one that a fold has already taken. Keys are stored as
rotated at their own positions; a fold turns them back. The first `sinks` tokens, once evicted, are rotated anew at every fold
so that they stand directly before the window, as in StreamingLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from models import native
from models.asked import Around, Recent
from models.config import MemoryConfig, ModelConfig
from models.layers import Rotary, rotate
from models.memory.base import Evicted, Finished, Left
from models.memory.beginnings import Beginnings
from models.state import MemoryState, Spec, TensorSpec


@dataclass(frozen=True)
class Fold:
    """Which rows evict a segment after a piece, and all that is the same for every layer of it."""

    state: MemoryState
    rows: list[int]  # of the piece's
    places: Tensor  # (B, S + lookahead) in the ring tensors
    cos: Tensor
    sin: Tensor  # (B, 1, S + lookahead, d/2) of the evicted positions
    sink_cos: Tensor
    sink_sin: Tensor  # (B, 1, sinks, d/2) of the sinks' new positions
    first: list[int]  # rows (of this fold) that evict their very first segment
    tokens: Tensor  # (B, S)
    said: Tensor | None  # (B, S)
    starts: Tensor  # (B,)
    counted: Tensor  # (B, S)


@dataclass(frozen=True)
class Finish:
    """Which rows complete a segment with a piece."""

    state: MemoryState
    places: Tensor  # (B, S) in the ring tensors
    cos: Tensor
    sin: Tensor  # (B, 1, S, d/2)
    starts: Tensor  # (B,)
    first: list[int]  # rows (of this finish) that complete their very first segment


@dataclass(frozen=True)
class Behind:
    """The tokens of a piece and some before them, which are `known` (B, n) if there were that many."""

    places: Tensor  # (B, n) in the ring tensors
    cos: Tensor
    sin: Tensor  # (B, 1, n, d/2)
    known: Tensor


@dataclass(frozen=True)
class Piece:
    """A stretch of a chunk in which no row crosses a segment border."""

    begin: int
    end: int
    positions: list[int]  # of the first token, by row; of a piece of which nobody asked where it begins: none
    places: Tensor  # (B, t)
    folded: list[int] | Tensor  # tokens each row has evicted before this piece
    finished: list[int] | Tensor  # tokens each row has in complete segments before this piece
    finish: Finish | None
    fold: Fold | None
    seeing: Callable[[], Tensor]
    trailing: Callable[[], Behind] | None

    @cached_property
    def bias(self) -> Tensor:
        """(B, 1, G*t, sinks + W + S) in the compute dtype: 0 where seen, else -inf."""
        return self.seeing()

    @cached_property
    def behind(self) -> Behind | None:
        """For a memory that looks back."""
        return None if self.trailing is None else self.trailing()


class Ring:
    """Places, masks and eviction for one model and memory configuration. Holds no session's data."""

    def __init__(
        self,
        model: ModelConfig,
        config: MemoryConfig,
        rotary: Rotary,
        dtype: torch.dtype,
        lookahead: int,
        follows: bool,
        looks_back: int = 0,
        beginnings: Beginnings | None = None,
    ) -> None:
        self._model, self._config, self._rotary, self._dtype = model, config, rotary, dtype
        self._lookahead, self._follows, self._looks_back = lookahead, follows, looks_back
        self._beginnings = beginnings

    def spec(self) -> Spec:
        """Keys and values of ring and sinks, the ring's token ids, and the session's position."""
        model, config = self._model, self._config
        entries = (model.num_layers, model.num_kv_heads, config.sinks + config.ring, model.head_dim)
        sinks = (model.num_layers, model.num_kv_heads, config.sinks, model.head_dim)
        said: Spec = {}
        if self._beginnings is not None:
            said = {"said": TensorSpec((config.ring,), torch.int32), **self._beginnings.spec()}
        return {
            "position": TensorSpec((), torch.int64),
            "tokens": TensorSpec((config.ring,), torch.int32),
            "ring_keys": TensorSpec(entries, self._dtype),
            "ring_values": TensorSpec(entries, self._dtype),
            "sink_keys": TensorSpec(sinks, self._dtype),
            **said,
        }

    def plan(self, tokens: Tensor, state: MemoryState) -> list[Piece]:
        """Cut a chunk, tokens (B, T), into pieces, and enter its token ids into the ring."""
        positions = state.positions
        segment = self._config.segment
        pieces, begin, length = [], 0, tokens.shape[1]
        while begin < length:
            starts = [position + begin for position in positions]
            count = min(length - begin, *(segment - start % segment for start in starts))
            pieces.append(self._piece(starts, begin, tokens[:, begin : begin + count], state))
            begin += count
        return pieces

    def unasked(self, tokens: Tensor, state: MemoryState) -> Piece:
        """One token (B, 1) each, none of which completes a segment, wherever the sessions stand: that stays on the device."""
        config, position = self._config, state.read("position")[:, None]  # (B, 1)
        places = position % config.ring
        self._note(places, tokens, state)
        finished = position // config.segment * config.segment
        folded = (finished - config.window).clamp_min(0)[:, 0]
        return Piece(
            begin=0,
            end=1,
            positions=[],
            places=config.sinks + places,
            folded=folded,
            finished=finished[:, 0],
            finish=None,
            fold=None,
            seeing=partial(self._bias, position, folded),
            trailing=partial(self._behind, position, 1) if self._looks_back else None,
        )

    def _piece(self, starts: list[int], begin: int, tokens: Tensor, state: MemoryState) -> Piece:
        config, count = self._config, tokens.shape[1]
        bases = [config.evicted(start) for start in starts]
        start = torch.tensor(starts, device=tokens.device)[:, None]  # (B, 1)
        query = start + torch.arange(count, device=tokens.device)  # (B, t)
        places = query % config.ring
        self._note(places, tokens, state)
        ends = [begun + count for begun in starts]
        return Piece(
            begin=begin,
            end=begin + count,
            positions=starts,
            places=config.sinks + places,
            folded=bases,
            finished=[begun // config.segment * config.segment for begun in starts],
            finish=self._finish(ends, state) if self._follows else None,
            fold=self._fold(ends, state),
            seeing=partial(self._bias, query, bases),
            trailing=partial(self._behind, start, count) if self._looks_back else None,
        )

    def _note(self, places: Tensor, tokens: Tensor, state: MemoryState) -> None:
        """Enter token ids (B, t) at their places, and what they stand behind."""
        state.write_places("tokens", places, tokens.to(torch.int32))
        if self._beginnings is not None:
            state.write_places("said", places, self._beginnings.read(tokens, state))

    def _bias(self, query: Tensor, bases: list[int] | Tensor) -> Tensor:
        """What queries at these positions (B, t) see of the ring, whose rows have evicted so many tokens."""
        config, device = self._config, query.device
        evicted = bases if isinstance(bases, Tensor) else torch.tensor(bases, device=device)
        base = evicted[:, None, None]  # (B, 1, 1)
        last = query[:, -1:]
        held = last - (last - torch.arange(config.ring, device=device)) % config.ring  # (B, W + S) positions
        held = held[:, None, :]
        near = (held >= base) & (held <= query[:, :, None])  # (B, t, W + S)
        sinks = (base > 0).expand(-1, query.shape[1], config.sinks)
        seen = torch.cat((sinks, near), dim=-1)[:, None]
        # The G query heads that share keys lie along t, so that the keys are never repeated.
        seen = seen.repeat(1, 1, self._model.queries_per_kv, 1)
        return torch.zeros_like(seen, dtype=self._dtype).masked_fill(~seen, -torch.inf)

    def _behind(self, start: Tensor, count: int) -> Behind:
        """Of a piece of so many tokens from the positions `start` (B, 1) on."""
        positions = start + torch.arange(-self._looks_back, count, device=start.device)
        known, held = positions >= 0, positions.clamp_min(0)
        cos, sin = self._rotary.table(held)
        return Behind(self._config.sinks + held % self._config.ring, cos, sin, known)

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor, state: MemoryState) -> None:
        """Keys and values (B, K, t, d) of one layer to their places (B, t)."""
        if native.suits_ring(state) and not keys.requires_grad:
            native.write_ring(state, layer, places, keys, values)
            return
        state.write_at("ring_keys", layer, places, keys)
        state.write_at("ring_values", layer, places, values)

    def recent(self, layer: int, behind: Behind, state: MemoryState) -> Recent:
        """The keys of one layer, once the piece has been written."""
        rotated = state.read_at("ring_keys", layer, behind.places)
        return Recent(rotate(rotated.to(behind.cos.dtype), behind.cos, -behind.sin), behind.known)

    def around(self, layer: int, behind: Behind, state: MemoryState) -> Around | None:
        """Where those keys are, if the state is written in place."""
        if not state.in_place:
            return None
        keys, rows = state.located("ring_keys")
        return Around(keys, rows, layer, behind.places, behind.cos, behind.sin, behind.known)

    def _finish(self, ends: list[int], state: MemoryState) -> Finish | None:
        config = self._config
        rows = [row for row, end in enumerate(ends) if end % config.segment == 0]
        if not rows:
            return None
        begins = [ends[row] - config.segment for row in rows]
        starts = torch.tensor(begins, device=state.device)
        positions = starts[:, None] + torch.arange(config.segment, device=state.device)
        cos, sin = self._rotary.table(positions)
        return Finish(
            state=state if len(rows) == len(ends) else state.select(rows),
            places=config.sinks + positions % config.ring,
            cos=cos,
            sin=sin,
            starts=starts,
            first=[row for row, begin in enumerate(begins) if begin == 0],
        )

    def finished(self, layer: int, finish: Finish) -> Finished:
        """The segment of one layer that has just become complete."""
        keys = finish.state.read_at("ring_keys", layer, finish.places)
        values = finish.state.read_at("ring_values", layer, finish.places)
        return Finished(
            keys=keys, values=values, cos=finish.cos, sin=finish.sin, starts=finish.starts, first=finish.first
        )

    def _fold(self, ends: list[int], state: MemoryState) -> Fold | None:
        config, device = self._config, state.device
        rows = [row for row, end in enumerate(ends) if end >= config.ring and end % config.segment == 0]
        if not rows:
            return None
        folding = state if len(rows) == len(ends) else state.select(rows)
        begins = [ends[row] - config.ring for row in rows]
        starts = torch.tensor(begins, device=device)
        positions = starts[:, None] + torch.arange(config.segment + self._lookahead, device=device)
        cos, sin = self._rotary.table(positions)
        before_window = starts[:, None] + config.segment - config.sinks
        sink_cos, sink_sin = self._rotary.table(before_window + torch.arange(config.sinks, device=device))
        places = positions % config.ring
        return Fold(
            state=folding,
            rows=rows,
            places=config.sinks + places,
            cos=cos,
            sin=sin,
            sink_cos=sink_cos,
            sink_sin=sink_sin,
            first=[row for row, begin in enumerate(begins) if begin == 0],
            tokens=folding.read_places("tokens", places[:, : config.segment]),
            said=None if self._beginnings is None else folding.read_places("said", places[:, : config.segment]),
            starts=starts,
            counted=positions[:, : config.segment] >= config.sinks,
        )

    def evict(self, layer: int, fold: Fold) -> Evicted:
        """Take the oldest segment of one layer out of the ring, and move the sinks along."""
        self.move_sinks(layer, fold)
        left, state = None, fold.state
        if state.in_place:
            (keys, rows), (values, _) = state.located("ring_keys"), state.located("ring_values")
            left = Left(keys, values, rows, fold.places, fold.cos, fold.sin)
        take = partial(self._evicted, layer, fold)
        return Evicted(
            take=take, tokens=fold.tokens, starts=fold.starts, counted=fold.counted, said=fold.said, left=left
        )

    def _evicted(self, layer: int, fold: Fold) -> tuple[Tensor, Tensor]:
        rotated = fold.state.read_at("ring_keys", layer, fold.places)
        keys = rotate(rotated.to(fold.cos.dtype), fold.cos, -fold.sin)  # (B, K, S + lookahead, d)
        return keys, fold.state.read_at("ring_values", layer, fold.places[:, : self._config.segment])

    def move_sinks(self, layer: int, fold: Fold) -> None:
        """Rotate the sinks of one layer anew, and store them when they leave the ring: all that is to do where nobody wants what
        leaves it."""
        sinks, state = self._config.sinks, fold.state
        if not sinks:
            return
        if native.suits_ring(state):
            native.move_sinks(layer, fold)
            return
        if fold.first:
            begun, places = state.select(fold.first), fold.places[fold.first, :sinks]
            cos, sin = fold.cos[fold.first, :, :sinks], fold.sin[fold.first, :, :sinks]
            keys = rotate(begun.read_at("ring_keys", layer, places).to(cos.dtype), cos, -sin)
            begun.write("sink_keys", keys.to(self._dtype), layer)
            values = begun.read_at("ring_values", layer, places)
            begun.write("ring_values", values, layer, slice(None), slice(0, sinks))
        moved = rotate(state.read("sink_keys", layer).to(fold.cos.dtype), fold.sink_cos, fold.sink_sin)
        state.write("ring_keys", moved.to(self._dtype), layer, slice(None), slice(0, sinks))
