"""How slots are asked for (`look.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.attention import available
from models.native.compiled import library
from models.native.joint import SIZES

if TYPE_CHECKING:
    from models.asked import Asked
    from models.memory.look import Look

PARAMETERS = (
    "sharpness",
    "offset",
    "eagerness",
    "down",
    "up",
    "centre",
    "query_trail",
    "gain",
    "slope",
    "steepness",
)


class _Look(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "head_stride", "row_stride")),
        *((name, ctypes.c_void_p) for name in ("far_cos", "far_sin", "keys")),
        *((name, ctypes.c_int64) for name in ("session_stride", "key_stride")),
        *((name, ctypes.c_void_p) for name in ("sessions", "places", "cos", "sin", "known", "heads", *PARAMETERS)),
        *((name, ctypes.c_int64) for name in ("batch", "number", "groups", "length", "size", "trails", "rank")),
        *((name, ctypes.c_void_p) for name in ("asked", "eager", "slopes")),
    )


def suits_look(asked: Asked, look: Look) -> bool:
    """Whether `look_far` can take them: bfloat16 queries on a CPU that has the instructions, and nothing that learns."""
    query, around = asked.plain, asked.around
    return (
        around is not None
        and around.keys.stride()[3:] == (query.shape[-1], 1)
        and query.shape[-1] in SIZES
        and available(query.device, query.dtype)
        and not (torch.is_grad_enabled() and (query.requires_grad or look.up.requires_grad))
    )


def look_far(asked: Asked, look: Look, heads: list[int], part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """See `models.memory.look.Look.forward`: for the key/value `heads` of a layer, which are `part` of all that it knows."""
    around = asked.around
    assert around is not None
    query = asked.plain.flatten(1, 2)  # (B, H, t, d)
    if query.stride(-1) != 1:
        query = query.contiguous()
    batch, _, length, size = query.shape
    groups = asked.plain.shape[2]
    parameters = [getattr(look, name)[part] for name in PARAMETERS]  # the first of each is where all of it begins
    shape = (batch, len(heads), groups, length)
    found = query.new_empty((*shape, size))
    eager, slopes = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    numbers = (ctypes.c_int32 * len(heads))(*heads)
    held = [
        tensor.contiguous() for tensor in (asked.cos, asked.sin, around.places, around.cos, around.sin, around.known)
    ]
    far_cos, far_sin, places, cos, sin, known = (tensor.data_ptr() for tensor in held)
    keys, item = around.keys, around.keys.element_size()
    job = _Look(
        query.data_ptr(),
        *query.stride()[:3],
        far_cos,
        far_sin,
        keys[:, around.layer].data_ptr(),
        item * keys.stride(0),
        item * keys.stride(2),
        None if around.rows is None else around.rows.data_ptr(),
        places,
        cos,
        sin,
        known,
        ctypes.addressof(numbers),
        *(parameter.data_ptr() for parameter in parameters),
        batch,
        len(heads),
        groups,
        length,
        size,
        look.query_trail.shape[1],
        look.up.shape[2],
        found.data_ptr(),
        eager.data_ptr(),
        slopes.data_ptr(),
    )
    library().palimpsest_look(ctypes.byref(job), torch.get_num_threads())
    return found, eager, slopes
