"""Attention to the k keys that score highest (`nearest.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from models.native.attention import suits
from models.native.compiled import library


def suits_nearest(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attend_nearest` can take these: as for `attend`, keys and values of one size that whole vectors make up."""
    return suits(query, keys, values) and query.shape[-1] == values.shape[-1]


def attend_nearest(
    query: Tensor, keys: Tensor, values: Tensor, nearest: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of query (B, r, Q, d) to the `nearest` of keys (B, r, N, d) and their values (B, r, N, d): (B, r, Q, d), float32,
    and the log-sum-exp of their scores (B, r, Q), float32.

    Scores are scaled by 1/√d. `counts` (B,) int64 says how many keys from the front there are; None: all. Where there are none, the
    answer is 0 and its log-sum-exp -inf. Of keys that score alike those in front are taken. Only for what it `suits_nearest`.
    """
    batch, heads, rows, depth = query.shape
    query = query.contiguous()
    out = torch.empty(query.shape, dtype=torch.float32)
    mass = torch.empty(query.shape[:-1], dtype=torch.float32)
    library().palimpsest_attend_nearest(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (query, keys, values)),
        ctypes.c_void_p(None if counts is None else counts.data_ptr()),
        *map(ctypes.c_int64, (batch, heads, rows, keys.shape[2], depth, nearest)),
        *((ctypes.c_int64 * 3)(*tensor.stride()[:3]) for tensor in (keys, values)),
        ctypes.c_float(1 / math.sqrt(depth)),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (out, mass)),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out, mass
