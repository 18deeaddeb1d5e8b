"""Few tokens through neighbouring layers in one call (`stack.cpp`), for processors with AVX-512 VNNI and BF16."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.compiled import library
from models.native.dense import DenseLayer, PackedStruct
from models.native.joint import KINDS, Lying, Stored
from models.native.look import PARAMETERS

if TYPE_CHECKING:
    from models.memory.look import Look
    from models.state import MemoryState


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        *((f"{name}_matrix", PackedStruct) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_int64) for name in ("number", "first")),
        *((name, ctypes.c_void_p) for name in ("heads", "index", *PARAMETERS)),
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
    )


@dataclass(frozen=True)
class Kept:
    """What some heads of some layers see beyond the ring, in tensors of the state that hold all of them: (B, R, C, …).

    `parts` are each layer's heads, and their neighbouring places among the R. `keys` and `values` name the codes, `key_scale` and
    so on what they are multiplied with, (B, R, C), and `key_grid` what they lie on, (B, R, 2, d); `score`, `position` and `token`,
    (B, R, C), say what each is worth, and of which token. Keys carry no rotation, and are seen from distance W, from the front
    on, in the order of the text. How they are asked for may be learned (`look`); then `trail` are the last keys that were evicted.
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


@dataclass(frozen=True)
class Places:
    """Where B sessions stand: their positions, the tokens that have left each one's ring, what each head of it keeps beyond, and
    the rotation (B, 1, t, d/2) of the tokens to come and of as many before them as are looked back at."""

    positions: Sequence[int]
    evicted: Sequence[int]
    kept: Sequence[int]
    cos: Tensor
    sin: Tensor


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

    def run(self, x: Tensor, state: MemoryState, places: Places) -> None:
        """Change x (B, T, D), float32 without gaps, into what the last layer makes of it, and write the ring.

        Of `places` the rotations are of `trails` + T tokens. The state must be one that is written in place.
        """
        batch, length, _ = x.shape
        config = self._config
        assert x.is_contiguous()
        (keys, rows), (values, _) = state.located("ring_keys"), state.located("ring_values")
        strides = [keys.element_size() * stride for stride in keys.stride()[:3]]
        first = strides[1] * self._begin
        assert keys.stride() == values.stride()
        assert keys.stride()[3:] == (config.head_dim, 1)
        cos, sin = places.cos.contiguous(), places.sin.contiguous()
        assert cos.shape[2] == length + self._trails
        numbers = ctypes.c_int64 * batch
        held = [numbers(*counts) for counts in (places.positions, places.evicted, places.kept)]
        positions, evicted, counts = map(ctypes.addressof, held)
        kind, far_keys, far_values = 0, Stored(), Stored()
        if self._kept is not None:
            kept = self._kept
            kind = KINDS[state.located(kept.keys)[0].dtype]
            far_keys = stored(state, kept.keys, kept.key_scale, kept.key_grid)
            far_values = stored(state, kept.values, kept.value_scale, kept.value_grid)
        job = _Step(
            x.data_ptr(),
            self._described,
            len(self._layers),
            config.rms_norm_eps,
            cos.data_ptr(),
            sin.data_ptr(),
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
            kind,
            far_keys,
            far_values,
            counts,
        )
        library().palimpsest_step(ctypes.byref(job), torch.get_num_threads())

    def _describe(self, index: int) -> _Layer:
        layer, kept = self._layers[index], self._kept
        described = _Layer(
            layer.attention_norm.data_ptr(),
            layer.mlp_norm.data_ptr(),
            *(matrix.described() for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)),
        )
        if kept is None or self._begin + index not in kept.parts:
            return described
        heads, part = kept.parts[self._begin + index]
        order = (ctypes.c_int32 * len(heads))(*heads)
        places = [heads.index(head) if head in heads else -1 for head in range(self._config.num_kv_heads)]
        found = (ctypes.c_int32 * len(places))(*places)
        self._held += [order, found]
        described.number, described.first = len(heads), part.start
        described.heads, described.index = ctypes.addressof(order), ctypes.addressof(found)
        if kept.look is not None:
            for name in PARAMETERS:
                setattr(described, name, getattr(kept.look, name)[part].data_ptr())
        return described


def stored(state: MemoryState, codes: str, scale: str | None, grid: str | None, part: slice = slice(None)) -> Stored:
    """Where tensors of these names lie in a state, those of some of their heads."""

    def lying(name: str | None) -> Lying:
        return Lying() if name is None else Lying.of(state.located(name)[0][:, part])

    narrow = scale is not None and state.located(scale)[0].dtype == torch.bfloat16
    return Stored(lying(codes), lying(scale), lying(grid), narrow)
