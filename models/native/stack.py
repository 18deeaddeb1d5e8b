"""Tokens through neighbouring layers in one call (`stack.cpp`), for processors with AVX-512 VNNI and BF16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.compiled import library
from models.native.dense import DenseLayer, PackedStruct
from models.native.joint import KINDS, Lying, Stored, pointer
from models.native.look import PARAMETERS

if TYPE_CHECKING:
    from models.memory.look import Look
    from models.memory.ring import Fold
    from models.state import MemoryState


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        *((f"{name}_matrix", PackedStruct) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_int64) for name in ("number", "first")),
        *((name, ctypes.c_void_p) for name in ("heads", "index", "order", *PARAMETERS, "key_trail")),
    )


class _Leaving(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("sessions", "places", "cos", "sin", "scores"),
                *("tokens", "said", "starts", "first", "sink_cos", "sink_sin"),
            )
        ),
        ("length", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        ("number", ctypes.c_int64),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "far_cos", "far_sin", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("session_stride", "layer_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("sessions", "positions", "evicted")),
        *((name, ctypes.c_int64) for name in ("sinks", "ring")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "kv_heads", "size", "trails", "rank")),
        ("kind", ctypes.c_int64),
        ("far_keys", Stored),
        ("far_values", Stored),
        ("far_counts", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("slots", "far_total")),
        *((name, Lying) for name in ("score", "position", "token", "said", "last")),
        ("sink_keys", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sink_session_stride", "sink_layer_stride", "sink_head_stride")),
        ("leaving", _Leaving),
    )


@dataclass(frozen=True)
class Kept:
    """What some heads of some layers see beyond the ring, in tensors of the state that hold all of them: (B, R, C, …).

    `parts` are each layer's heads, and their neighbouring places among the R. `keys` and `values` name the codes, `key_scale` and
    so on what they are multiplied with, (B, R, C), and `key_grid` what they lie on, (B, R, 2, d); `score`, `position` and `token`,
    (B, R, C), say what each is worth, and of which token. Keys carry no rotation, and are seen from distance W, from the front
    on, in the order of the text. How they are asked for may be learned (`look`); then `trail` are the last keys that were evicted.
    `said`, (B, R, C), is what each stands behind in its sentence, where that matters.
    """

    parts: Mapping[int, tuple[Sequence[int], slice]]
    keys: str
    values: str
    score: str
    position: str
    token: str
    key_scale: str | None = None
    value_scale: str | None = None
    key_grid: str | None = None
    value_grid: str | None = None
    look: Look | None = None
    trail: str | None = None
    said: str | None = None


@dataclass(frozen=True)
class Folding:
    """What leaves the ring of F of B sessions, which are its `rows`, and what it is worth: (F, R, S), -inf for what nobody keeps;
    None where no layer keeps anything, or nobody knows it yet."""

    fold: Fold
    rows: Sequence[int]
    worth: Tensor | None


@dataclass(frozen=True)
class Places:
    """Where B sessions stand: their positions, the tokens that have left each one's ring, what each head of it keeps beyond, and
    the rotation (B, 1, t, d/2) of the tokens to come and of as many before them as are looked back at. Behind those tokens some
    sessions' oldest ones may leave."""

    positions: Sequence[int]
    evicted: Sequence[int]
    kept: Sequence[int]
    cos: Tensor
    sin: Tensor
    folding: Folding | None = None


class Stack:
    """Neighbouring layers, from `begin` on, of whose heads some may see what the memory has `kept`."""

    def __init__(
        self,
        begin: int,
        layers: Sequence[DenseLayer],
        kept: Kept | None,
        far: tuple[Tensor, Tensor],
        sinks: int,
        trails: int,
    ) -> None:
        """`far` is the rotation of distance W, cosines and sines (1, 1, 1, d/2); `trails` as many tokens are looked back at."""
        self._begin, self._layers, self._kept = begin, tuple(layers), kept
        self._sinks, self._trails = sinks, trails
        self._config = self._layers[0].config
        self._far = tuple(part.contiguous() for part in far)
        self._held: list[object] = []
        self._described = (_Layer * len(layers))(*(self._describe(index) for index in range(len(layers))))
        self._rank = 0 if kept is None or kept.look is None else kept.look.up.shape[2]
        ends = range(begin, begin + len(layers))
        self.keeps = kept is not None and any(layer in kept.parts for layer in ends)
        """Whether one of the layers folds what leaves the ring, and has to be told what it is worth."""

    def run(self, steps: Sequence[tuple[Tensor, Places]], state: MemoryState, depth: int) -> None:
        """Take the tokens of some steps, one behind the other, through the first `depth` of the layers.

        Each is x (B, T, D), float32 without gaps, which is changed into what the last layer makes of it, and its places, whose
        rotations are of `trails` + T tokens. Ring and memory are written; the state must be one that is written in place.
        """
        held: list[object] = []
        jobs = (_Step * len(steps))(*(self._step(x, state, places, depth, held) for x, places in steps))
        library().palimpsest_steps(jobs, ctypes.c_int64(len(steps)), torch.get_num_threads())

    def _step(self, x: Tensor, state: MemoryState, places: Places, depth: int, held: list[object]) -> _Step:
        """What it points to is `held`."""
        batch, length, _ = x.shape
        config = self._config
        assert x.is_contiguous()
        (keys, rows), (values, _) = state.located("ring_keys"), state.located("ring_values")
        strides = [keys.element_size() * stride for stride in keys.stride()[:3]]
        first = strides[1] * self._begin
        assert keys.stride() == values.stride()
        assert keys.stride()[3:] == (config.head_dim, 1)
        assert places.cos.shape[2] == length + self._trails
        sinks, _ = state.located("sink_keys")
        sink_strides = [sinks.element_size() * stride for stride in sinks.stride()[:3]]
        numbers = ctypes.c_int64 * batch
        counted = [numbers(*counts) for counts in (places.positions, places.evicted, places.kept)]
        held += counted
        positions, evicted, counts = map(ctypes.addressof, counted)
        job = _Step(
            x.data_ptr(),
            self._described,
            depth,
            config.rms_norm_eps,
            pointer(places.cos, held),
            pointer(places.sin, held),
            *(part.data_ptr() for part in self._far),
            keys.data_ptr() + first,
            values.data_ptr() + first,
            *strides,
            None if rows is None else rows.data_ptr(),
            positions,
            evicted,
            self._sinks,
            keys.shape[3] - self._sinks,
            batch,
            length,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            self._trails,
            self._rank,
            sink_keys=sinks.data_ptr() + sink_strides[1] * self._begin,
        )
        job.sink_session_stride, job.sink_layer_stride, job.sink_head_stride = sink_strides
        if self._kept is not None:
            kept = self._kept
            scores = state.located(kept.score)[0]
            job.kind, job.far_counts = KINDS[state.located(kept.keys)[0].dtype], counts
            job.far_keys = stored(state, kept.keys, kept.key_scale, kept.key_grid)
            job.far_values = stored(state, kept.values, kept.value_scale, kept.value_grid)
            job.far_total, job.slots = scores.shape[1:]
            job.score, job.position, job.token = (
                Lying.of(state.located(name)[0]) for name in (kept.score, kept.position, kept.token)
            )
            job.said = Lying() if kept.said is None else Lying.of(state.located(kept.said)[0])
            job.last = Lying() if kept.trail is None else Lying.of(state.located(kept.trail)[0])
        if places.folding is not None:
            job.leaving = _leaving(places.folding, rows, held)
        return job

    def _describe(self, index: int) -> _Layer:
        layer, kept = self._layers[index], self._kept
        described = _Layer(
            layer.attention_norm.data_ptr(),
            layer.mlp_norm.data_ptr(),
            *(matrix.described() for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)),
        )
        nothing: tuple[Sequence[int], slice] = (), slice(0, 0)
        heads, part = nothing if kept is None else kept.parts.get(self._begin + index, nothing)
        every = range(self._config.num_kv_heads)
        numbers = [
            heads,
            [heads.index(head) if head in heads else -1 for head in every],
            sorted(every, key=lambda head: head not in heads),
        ]
        arrays = [(ctypes.c_int32 * len(each))(*each) for each in numbers]
        self._held += arrays
        described.number, described.first = len(heads), part.start
        described.heads, described.index, described.order = map(ctypes.addressof, arrays)
        if kept is None or not heads:
            return described
        if kept.look is not None:
            for name in (*PARAMETERS, "key_trail"):
                setattr(described, name, getattr(kept.look, name)[part].data_ptr())
        return described


def _leaving(folding: Folding, rows: Tensor | None, held: list[object]) -> _Leaving:
    """`rows` are where the B sessions are."""
    fold = folding.fold
    chosen = torch.tensor(folding.rows)
    first = (ctypes.c_uint8 * len(chosen))(*(row in fold.first for row in range(len(chosen))))
    held.append(first)
    length = fold.tokens.shape[1]  # what is looked ahead at stays
    return _Leaving(
        len(chosen),
        pointer(chosen if rows is None else rows[chosen], held),
        *(pointer(x, held) for x in (fold.places[:, :length], fold.cos[:, :, :length], fold.sin[:, :, :length])),
        pointer(folding.worth, held),
        *(pointer(x, held) for x in (fold.tokens, fold.said, fold.starts)),
        ctypes.addressof(first),
        *(pointer(x, held) for x in (fold.sink_cos, fold.sink_sin)),
        length,
    )


def stored(state: MemoryState, codes: str, scale: str | None, grid: str | None, part: slice = slice(None)) -> Stored:
    """Where tensors of these names lie in a state, those of some of their heads."""

    def lying(name: str | None) -> Lying:
        return Lying() if name is None else Lying.of(state.located(name)[0][:, part])

    narrow = scale is not None and state.located(scale)[0].dtype == torch.bfloat16
    return Stored(lying(codes), lying(scale), lying(grid), narrow)
