"""What is written into a ring (`ring.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.attention import available
from models.native.compiled import library
from models.native.joint import SIZES

if TYPE_CHECKING:
    from models.memory.ring import Fold
    from models.state import MemoryState


class _Ring(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("session_stride", "head_stride")),
        ("sessions", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "size")),
    )


class _Written(ctypes.Structure):
    _fields_ = (
        ("ring", _Ring),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("batch_stride", "row_head_stride", "row_stride")),
        ("places", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    )


class _Moved(ctypes.Structure):
    _fields_ = (
        ("ring", _Ring),
        ("sinks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sink_session_stride", "sink_head_stride")),
        *((name, ctypes.c_void_p) for name in ("first", "places", "cos", "sin")),
        ("width", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("new_cos", "new_sin")),
        ("count", ctypes.c_int64),
    )


def suits_ring(state: MemoryState) -> bool:
    """Whether `write_ring` and `move_sinks` can write this state: bfloat16, in place, on a CPU that has the instructions."""
    if not state.in_place:
        return False
    keys = state.located("ring_keys")[0]
    size = keys.shape[-1]
    return available(keys.device, keys.dtype) and size in SIZES and keys.stride()[3:] == (size, 1)


def write_ring(state: MemoryState, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
    """Keys and values (B, K, t, d) of one layer to their places (B, t)."""
    keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys, values))
    if keys.stride() != values.stride():
        keys, values = keys.contiguous(), values.contiguous()
    places = places.contiguous()
    job = _Written(
        _ring(state, layer),
        keys.data_ptr(),
        values.data_ptr(),
        *keys.stride()[:3],
        places.data_ptr(),
        keys.shape[2],
    )
    library().palimpsest_write_ring(ctypes.byref(job))


def move_sinks(layer: int, fold: Fold) -> None:
    """See `models.memory.ring.Ring.move_sinks`."""
    sinks, _ = fold.state.located("sink_keys")
    sinks = sinks[:, layer]
    first = (ctypes.c_uint8 * fold.state.batch)(*(row in fold.first for row in range(fold.state.batch)))
    held = [x.contiguous() for x in (fold.places, fold.cos, fold.sin, fold.sink_cos, fold.sink_sin)]
    places, cos, sin, new_cos, new_sin = (x.data_ptr() for x in held)
    job = _Moved(
        _ring(fold.state, layer),
        sinks.data_ptr(),
        *(sinks.element_size() * stride for stride in sinks.stride()[:2]),
        ctypes.addressof(first),
        places,
        cos,
        sin,
        fold.places.shape[1],
        new_cos,
        new_sin,
        sinks.shape[2],
    )
    library().palimpsest_move_sinks(ctypes.byref(job))


def _ring(state: MemoryState, layer: int) -> _Ring:
    (keys, rows), (values, _) = state.located("ring_keys"), state.located("ring_values")
    keys, values = keys[:, layer], values[:, layer]
    assert keys.dtype == torch.bfloat16
    return _Ring(
        keys.data_ptr(),
        values.data_ptr(),
        *(keys.element_size() * stride for stride in keys.stride()[:2]),
        None if rows is None else rows.data_ptr(),
        state.batch,
        *(keys.shape[1], keys.shape[3]),
    )
