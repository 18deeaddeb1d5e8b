"""The dense half of a decoder layer in small integers (`dense.h`), for processors with AVX-512 VNNI and BF16."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig
from models.native.attention import available
from models.native.compiled import library
from models.native.joint import SIZES

PANEL = 32
"""Outputs must come in multiples of this many."""
GROUP = 64
"""Inputs, too: so many share an activation's scale."""
NIBBLES = 32
"""Inputs whose weights of four bits share a scale and a lowest value."""


class PackedStruct(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("grid", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


class _Project(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("weights", PackedStruct),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "size", "length", "rows")),
        *((name, ctypes.c_void_p) for name in ("query", "near", "key", "value")),
    )


class _Finish(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("heads", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "head_stride", "row_stride", "length", "size", "rows")),
        ("out", PackedStruct),
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("gate_up", PackedStruct),
        ("down", PackedStruct),
    )


class _ReadOut(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("weights", PackedStruct),
        ("rows", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Packed:
    """A matrix (N, K) as the kernels read it: with one scale an output, or with a grid of many."""

    codes: Tensor
    scale: Tensor | None
    grid: Tensor | None
    outputs: int
    inputs: int

    def described(self) -> PackedStruct:
        """For a call, in which these tensors must stay alive."""
        scale, grid = (None if part is None else part.data_ptr() for part in (self.scale, self.grid))
        return PackedStruct(self.codes.data_ptr(), scale, grid, self.outputs, self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return sum(part.nbytes for part in (self.codes, self.scale, self.grid) if part is not None)


def suits_matrix(matrix: Tensor) -> bool:
    """Whether the kernels can take this (N, K) over: of a bfloat16 model on a CPU that has the instructions."""
    outputs, inputs = matrix.shape
    return available(matrix.device, matrix.dtype) and outputs % PANEL == 0 and inputs % GROUP == 0


def suits_layer(config: ModelConfig, *matrices: Tensor) -> bool:
    """Whether all matrices of a layer suit, and its heads, which must be as wide together as hidden vectors are."""
    width = config.num_heads * config.head_dim
    return config.head_dim in SIZES and width == config.hidden_size and all(map(suits_matrix, matrices))


def pack(codes: Tensor, scale: Tensor) -> Packed:
    """Weights as int8 codes (N, K) and a scale an output (N,), float32, in the kernels' order."""
    positive = (_panels(codes).to(torch.int16) + 128).to(torch.uint8)
    return Packed(positive.contiguous(), scale.contiguous(), None, *codes.shape)


def pack_nibbles(codes: Tensor, scale: Tensor, lowest: Tensor) -> Packed:
    """Weights as codes (N, K) from 0 to 15, uint8, and for every NIBBLES of a row what they are multiplied with and what is added
    then, (N, K / NIBBLES) each, float16, in the kernels' order."""
    first, second = _panels(codes).split(PANEL // 2, dim=2)
    grid = torch.stack((scale, lowest)).unflatten(1, (-1, PANEL)).permute(1, 3, 0, 2)
    return Packed((first | second << 4).contiguous(), None, grid.contiguous(), *codes.shape)


def in_pairs(outputs: int) -> Tensor:
    """The order (2 I,) of gates, behind which is what they let through, in which both halves of a panel belong together."""
    return torch.arange(outputs).view(2, -1, PANEL // 2).transpose(0, 1).flatten()


def _panels(codes: Tensor) -> Tensor:
    """(N / PANEL, K / 4, PANEL, 4)"""
    outputs, inputs = codes.shape
    return codes.view(outputs // PANEL, PANEL, inputs // 4, 4).permute(0, 2, 1, 3)


@dataclass(frozen=True)
class DenseLayer:
    """What a decoder layer does before and after attention. Norms are float32."""

    config: ModelConfig
    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Packed
    out: Packed
    gate_up: Packed
    down: Packed

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x (B, T, D), float32, and the rotary table of its positions, (B or 1, 1, T or 1, d/2): queries (B, H, T, d), queries
        turned, keys turned and values (B, K, T, d), bfloat16."""
        batch, length, _ = x.shape
        config, size = self.config, self.config.head_dim
        x = x.contiguous()
        table = [part.expand(batch, 1, length, size // 2).contiguous() for part in (cos, sin)]
        heads = (config.num_heads, config.num_heads, config.num_kv_heads, config.num_kv_heads)
        query, near, key, value = (x.new_empty((batch, count, length, size), dtype=torch.bfloat16) for count in heads)
        job = _Project(
            x.data_ptr(),
            self.attention_norm.data_ptr(),
            config.rms_norm_eps,
            self.qkv.described(),
            *(part.data_ptr() for part in table),
            config.num_heads,
            config.num_kv_heads,
            size,
            length,
            batch * length,
            *(part.data_ptr() for part in (query, near, key, value)),
        )
        library().palimpsest_project(ctypes.byref(job), torch.get_num_threads())
        return query, near, key, value

    def finish(self, x: Tensor, heads: Tensor) -> None:
        """Add to x (B, T, D), float32 without gaps, what its heads (B, H, T, d) found, and then what the feed-forward network makes
        of it."""
        assert x.is_contiguous(), "what is changed in place must not be a copy"
        batch, length, _ = x.shape
        heads = heads if heads.stride(-1) == 1 else heads.contiguous()
        job = _Finish(
            x.data_ptr(),
            heads.data_ptr(),
            *heads.stride()[:3],
            length,
            heads.shape[-1],
            batch * length,
            self.out.described(),
            self.mlp_norm.data_ptr(),
            self.config.rms_norm_eps,
            self.gate_up.described(),
            self.down.described(),
        )
        library().palimpsest_finish(ctypes.byref(job), torch.get_num_threads())


def read_out(hidden: Tensor, norm: Tensor, eps: float, matrix: Packed) -> Tensor:
    """Logits (..., V) of hidden outputs (..., D), all float32."""
    hidden = hidden.contiguous()
    rows = hidden.numel() // matrix.inputs
    logits = hidden.new_empty((*hidden.shape[:-1], matrix.outputs))
    job = _ReadOut(hidden.data_ptr(), norm.data_ptr(), eps, matrix.described(), rows, logits.data_ptr())
    library().palimpsest_read_out(ctypes.byref(job), torch.get_num_threads())
    return logits
