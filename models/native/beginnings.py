"""What stands before a token in its sentence (`beginnings.h`), on CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from models.native.compiled import compiled, library
from models.state import MemoryState

_WORD = 2**64


class _Beginnings(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "ends", "sentence", "sessions")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "least")),
        *((name, ctypes.c_uint64) for name in ("base", "mix")),
        ("said", ctypes.c_void_p),
    )


def suits_beginnings(tokens: Tensor, state: MemoryState) -> bool:
    """Whether `read_beginnings` can take tokens (B, t) of a state that is written in place."""
    return state.in_place and tokens.device.type == "cpu" and tokens.dtype == torch.int64 and compiled() is not None


def read_beginnings(tokens: Tensor, state: MemoryState, ends: Tensor, least: int, base: int, mix: int) -> Tensor:
    """See `models.memory.beginnings.Beginnings.read`; `ends` (V,) bool."""
    tokens, (sentence, rows) = tokens.contiguous(), state.located("sentence")
    assert sentence.is_contiguous()
    said = torch.empty(tokens.shape, dtype=torch.int32)
    job = _Beginnings(
        tokens.data_ptr(),
        ends.data_ptr(),
        sentence.data_ptr(),
        None if rows is None else rows.data_ptr(),
        *tokens.shape,
        least,
        base % _WORD,
        mix % _WORD,
        said.data_ptr(),
    )
    library().palimpsest_read_beginnings(ctypes.byref(job))
    return said
