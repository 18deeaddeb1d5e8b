"""Attention over keys as they lie in a session's state (`few.h`, `many.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.native.attention import available
from models.native.compiled import library

if TYPE_CHECKING:
    from models.asked import Far, Grid

FEW = 16
"""Below so many tokens a session, keys are better not packed first."""
SIZES = (32, 64, 96, 128, 256)
"""Dimensions of heads that are provided for."""
KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.uint8: 2}


class Lying(ctypes.Structure):
    """A tensor (sessions, r, …) whose heads' parts have no gaps."""

    _fields_ = (("data", ctypes.c_void_p), ("session_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> Lying:
        """Where it lies, which it must not leave before the call."""
        return cls(tensor.data_ptr(), *(tensor.element_size() * stride for stride in tensor.stride()[:2]))


class Stored(ctypes.Structure):
    """Keys or values as they lie in a state."""

    _fields_ = (("codes", Lying), ("scale", Lying), ("grid", Lying), ("narrow", ctypes.c_int64))


class _Few(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("sessions", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "count", "size")),
        ("out", ctypes.c_void_p),
        ("far_heads", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("far_count", "far_number", "kind")),
        ("far_query", ctypes.c_void_p),
        ("far_keys", Stored),
        ("far_values", Stored),
        *((name, ctypes.c_void_p) for name in ("offset", "slope", "age", "visible", "far_counts", "tiles")),
    )


def suits_jointly(
    query: Tensor, keys: Tensor, values: Tensor, far_query: Tensor | None = None, far: Far | None = None
) -> bool:
    """Whether `attend_jointly` can take query (B, K, G, t, d), keys and values (B, K, N, d) and far keys: bfloat16 on a CPU that
    has the instructions, and no gradients wanted."""
    tensors = [query, keys, values]
    if far is not None:
        tensors += [x for x in (far_query, far.keys, far.values, far.offset, far.slope) if x is not None]
    size = query.shape[-1]
    return (
        size in SIZES
        and available(query.device, query.dtype)
        and keys.stride()[2:] == (size, 1)
        and keys.stride() == values.stride()
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def attend_jointly(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor | None = None, far: Far | None = None
) -> Tensor:
    """Softmax attention of query (B, K, G, t, d) over near keys, and in the same softmax over far ones, which `far_query`
    (B, r, G, t, d) sees. `bias` (B, 1, G*t, N). Only for what it suits."""
    query, bias = query.contiguous(), bias.contiguous()
    batch, heads, groups, length, size = query.shape
    out = torch.empty_like(query)
    job = _Few(
        query=query.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        batch_stride=2 * keys.stride(0),
        head_stride=2 * keys.stride(1),
        bias=bias.data_ptr(),
        batch=batch,
        heads=heads,
        queries=groups * length,
        count=keys.shape[2],
        size=size,
        out=out.data_ptr(),
    )
    held: list[Tensor] = []  # until the call is over
    if far is not None:
        assert far_query is not None
        number = (ctypes.c_int32 * heads)(
            *(far.heads.index(head) if head in far.heads else -1 for head in range(heads))
        )
        job.far_heads, job.far_query = ctypes.addressof(number), pointer(far_query, held)
        job.far_count, job.far_number, job.kind = far.keys.shape[2], len(far.heads), KINDS[far.keys.dtype]
        job.far_keys = _stored(far.keys, far.key_scale, far.key_grid, held)
        job.far_values = _stored(far.values, far.value_scale, far.value_grid, held)
        job.offset, job.slope, job.age, job.visible = (
            pointer(tensor, held) for tensor in (far.offset, far.slope, far.age, far.visible)
        )
    loaded = library()
    run = loaded.palimpsest_attend_few if length < FEW else loaded.palimpsest_attend_many
    run(ctypes.byref(job), torch.get_num_threads())
    return out


def _stored(x: Tensor, scale: Tensor | None, grid: Grid | None, held: list[Tensor]) -> Stored:
    parts = [x if x.stride()[2:] == (x.shape[-1], 1) else x.contiguous()]
    if scale is not None:
        parts.append(scale if scale.stride(-1) == 1 else scale.contiguous())
    if grid is not None:
        parts.append(torch.stack((grid.centre, grid.spread), dim=2))
    held += parts
    lying = iter(map(Lying.of, parts))
    codes = next(lying)
    return Stored(codes, Lying() if scale is None else next(lying), Lying() if grid is None else next(lying))


def pointer(tensor: Tensor | None, held: list[Any]) -> int | None:
    """Where a tensor without gaps lies, which is `held` until the call is over."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    held.append(tensor)
    return tensor.data_ptr()
