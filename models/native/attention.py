"""Softmax attention with its log-sum-exp, two to three times as fast as torch's fused kernel on processors with AVX-512 BF16."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor
from torch import library as operators

from models.native.compiled import compiled, library


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether long chunks of a model on this device, with weights of this type, go through `attend`."""
    return device.type == "cpu" and dtype == torch.bfloat16 and compiled() is not None


def suits(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `attend` can take these: bfloat16 on a CPU that has the instructions, and no gradients wanted."""
    tensors = [query, keys, values, *([] if bias is None else [bias])]
    return (
        available(query.device, query.dtype)
        and values.shape[-1] % 64 == 0
        and query.shape[-1] % 2 == 0
        and all(tensor.dtype == torch.bfloat16 and tensor.stride(-1) == 1 for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


@operators.custom_op("palimpsest::attend", mutates_args=(), device_types="cpu")
def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of query (B, r, Q, k) over keys (B, r, N, k) and values (B, r, N, d): (B, r, Q, d), and the log-sum-exp of its
    scores (B, r, Q), float32.

    Scores are scaled by 1/√d. `bias`, which broadcasts to (B, r, Q, N), is added to them. A query that sees nothing gets zeros, and
    -inf as its log-sum-exp. Only for what it `suits`. Products and sums are float32; weights are rounded to bfloat16 before they
    meet the values, as in torch's kernel.
    """
    batch, heads, rows, depth = query.shape
    count, size = values.shape[2:]
    query = query.contiguous()
    if bias is not None:
        bias = bias.expand(batch, heads, rows, count)
    out = query.new_empty((batch, heads, rows, size))
    mass = torch.empty(query.shape[:-1], dtype=torch.float32)
    library().palimpsest_attend(
        *map(_address, (query, keys, values, bias)),
        *map(ctypes.c_int64, (batch, heads, rows, count, depth, size)),
        *map(_strides, (keys, values, bias)),
        ctypes.c_float(1 / math.sqrt(size)),
        *map(_address, (out, mass)),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out, mass


@attend.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = query.shape[:-1]
    return query.new_empty((*shape, values.shape[-1])), query.new_empty(shape, dtype=torch.float32)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _strides(tensor: Tensor | None) -> ctypes.Array[ctypes.c_int64]:
    """Of batch, head and row."""
    return (ctypes.c_int64 * 3)(*((0, 0, 0) if tensor is None else tensor.stride()[:3]))
