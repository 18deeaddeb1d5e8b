"""What slots foretell of tokens (`hear.h`), for processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.native.compiled import compiled, library

if TYPE_CHECKING:
    from models.memory.importance import Learned
    from models.state import MemoryState

_UNITS = 256
"""Hidden units that there is room for."""


class _Hear(ctypes.Structure):
    _fields_ = (
        ("hidden", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "row_stride")),
        *((name, ctypes.c_void_p) for name in ("positions", "down", "offset", "up", "noted", "sessions")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "width", "units", "heads", "places")),
        ("eps", ctypes.c_float),
    )


def suits_hear(importance: Learned, hidden: Tensor, state: MemoryState) -> bool:
    """Whether `hear` can take hidden vectors (B, T, D): float32 on a CPU that has the instructions, and nothing that learns."""
    units, width = importance.down.shape
    learns = hidden.requires_grad or importance.down.requires_grad
    return (
        state.in_place
        and hidden.device.type == "cpu"
        and compiled() is not None
        and hidden.dtype == importance.down.dtype == torch.float32
        and hidden.stride(-1) == 1
        and width % 16 == 0
        and units % 16 == 0
        and units <= _UNITS
        and not (torch.is_grad_enabled() and learns)
    )


def hear(importance: Learned, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
    """See `models.memory.importance.Learned.hear`."""
    noted, rows = state.located("importance")
    assert noted.is_contiguous()
    positions = positions.contiguous()
    units, width = importance.down.shape
    job = _Hear(
        hidden.data_ptr(),
        *hidden.stride()[:2],
        positions.data_ptr(),
        *(x.data_ptr() for x in (importance.down, importance.offset, importance.up, noted)),
        None if rows is None else rows.data_ptr(),
        *hidden.shape[:2],
        width,
        units,
        noted.shape[2],
        noted.shape[1],
        torch.finfo(torch.float32).eps,
    )
    library().palimpsest_hear(ctypes.byref(job), torch.get_num_threads())
