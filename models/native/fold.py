"""How evicted tokens go into slots (`fold.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.attention import available
from models.native.compiled import library
from models.native.joint import KINDS, SIZES, Lying, Stored, pointer
from models.native.stack import Kept, stored

if TYPE_CHECKING:
    from models.memory.base import Evicted
    from models.state import MemoryState


class _Fold(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("session_stride", "ring_head_stride")),
        *((name, ctypes.c_void_p) for name in ("sessions", "heads", "places", "cos", "sin", "scores")),
        ("score_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("tokens", "starts")),
        *((name, ctypes.c_int64) for name in ("batch", "number", "length", "slots", "size", "sinks")),
        ("kind", ctypes.c_int64),
        *((name, Stored) for name in ("far_keys", "far_values")),
        *((name, Lying) for name in ("score", "position", "token", "last")),
        ("trails", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("trail", "centre")),
        ("said", Lying),
        ("new_said", ctypes.c_void_p),
    )


def suits_fold(evicted: Evicted, scores: Tensor) -> bool:
    """Whether `fold` can take these: a bfloat16 ring that lies on a CPU that has the instructions, and nothing that learns."""
    left = evicted.left
    return (
        left is not None
        and left.keys.shape[-1] in SIZES
        and left.keys.stride() == left.values.stride()
        and left.keys.stride()[3:] == (left.keys.shape[-1], 1)
        and available(left.keys.device, left.keys.dtype)
        and not (torch.is_grad_enabled() and scores.requires_grad)
    )


def fold(kept: Kept, layer: int, state: MemoryState, evicted: Evicted, scores: Tensor, sinks: int) -> None:
    """Keep the most important of what a layer's slots hold and of evicted tokens with these scores (B, r, S).

    What has the score -inf is not kept. See `models.memory.slots.Slots.fold`, which says it in torch.
    """
    left = evicted.left
    assert left is not None
    heads, part = kept.parts[layer]
    batch, number, length = scores.shape
    size, item = left.keys.shape[-1], left.keys.element_size()
    order = (ctypes.c_int32 * number)(*heads)
    cos, sin = (table[:, 0, :length] for table in (left.cos, left.sin))
    held = [
        tensor.contiguous() for tensor in (left.places[:, :length], cos, sin, scores, evicted.tokens, evicted.starts)
    ]
    places, cos, sin, scores, tokens, starts = held
    keys, values = left.keys[:, layer], left.values[:, layer]
    slots, rows = state.located(kept.score)
    assert rows is left.rows

    def lying(name: str) -> Lying:
        return Lying.of(state.located(name)[0][:, part])

    look = kept.look
    trailing = None if look is None else (look.key_trail[part].contiguous(), look.centre[part].contiguous())
    job = _Fold(
        keys.data_ptr(),
        values.data_ptr(),
        item * keys.stride(0),
        item * keys.stride(1),
        None if rows is None else rows.data_ptr(),
        ctypes.addressof(order),
        *(tensor.data_ptr() for tensor in (places, cos, sin, scores)),
        scores.stride(0),
        *(tensor.data_ptr() for tensor in (tokens, starts)),
        batch,
        number,
        length,
        slots.shape[2],
        size,
        sinks,
        KINDS[state.located(kept.keys)[0].dtype],
        stored(state, kept.keys, kept.key_scale, kept.key_grid, part),
        stored(state, kept.values, kept.value_scale, kept.value_grid, part),
        lying(kept.score),
        lying(kept.position),
        lying(kept.token),
        Lying() if kept.trail is None else lying(kept.trail),
        0 if look is None else look.key_trail.shape[1],
        *((None, None) if trailing is None else (tensor.data_ptr() for tensor in trailing)),
    )
    if kept.said is not None:
        job.said, job.new_said = lying(kept.said), pointer(evicted.said, held)
    library().palimpsest_fold(ctypes.byref(job), torch.get_num_threads())
