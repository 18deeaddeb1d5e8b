"""Weights in eight-bit integers, one scale an output, or in four bits, a scale and a lowest value for every 32 inputs.

Eight bits are half the bytes of bfloat16, and twice the products a second where the processor has instructions for them. Four bits,
with their grids five eighths of that, are for single tokens; the head stays in eight then.
On a CPU with AVX-512 VNNI and BF16 the dense halves of layers and the head run in `models/native/dense.h`, where activations are
eight-bit integers, too, with a scale for every 64 of them. Everywhere else weights are rounded alike, and computed with as before.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import native
from models.layers import Head, Layer, Projected, wide
from models.transformer import Decoder

Precision = Literal["int8", "int4"]


class Quantizer:
    """Quantizes decoders to one precision. What several of them share is quantized once."""

    def __init__(self, precision: Precision = "int8") -> None:
        self._precision = precision
        self._layers: dict[Layer, Layer] = {}
        self._heads: dict[nn.Module, Head] = {}

    def quantize(self, decoder: Decoder) -> Decoder:
        """The same decoder over quantized weights. Norms and the embedding of tokens stay as they are."""
        weights = decoder.weights
        layers = {index: self._layer(weights.layer(index)) for index in range(len(weights.layers))}
        for index, layer in layers.items():
            if decoder.memory.mixes(index) and isinstance(layer, _QuantizedLayer):
                layer.mixing = _rounded(weights.layer(index).out, self._precision)
        return Decoder(weights.with_layers(layers, self._head(weights.head)), decoder.memory)

    def _layer(self, layer: Layer) -> Layer:
        if layer not in self._layers:
            suited = native.suits_layer(layer.config, layer.qkv, layer.out, layer.gate_up, layer.down)
            make = _QuantizedLayer if suited else _rounded_layer
            self._layers[layer] = make(layer, self._precision)
        return self._layers[layer]

    def _head(self, head: Head) -> Head:
        if head not in self._heads:
            suited = native.suits_matrix(head.matrix)
            rounded = Head(head.norm, _rounded(head.matrix, "int8"), head.eps) if not suited else _QuantizedHead(head)
            self._heads[head] = rounded
        return self._heads[head]


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, K) from -127 to 127, int8, and what they are multiplied with by row, (N,) float32."""
    scale = matrix.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (matrix.float() / scale[:, None]).round().to(torch.int8), scale


def quantize_blocks(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (N, K) from 0 to 15, uint8, and for every 32 of a row their scale and what is added then, (N, K / 32) float16.

    As GGUF's Q4_1 has it, whose numbers come back as they were but for the rounding of what they were read as.
    """
    blocks = F.pad(matrix.float(), (0, -matrix.shape[1] % native.NIBBLES)).unflatten(1, (-1, native.NIBBLES))
    lowest, highest = blocks.amin(dim=2).half(), blocks.amax(dim=2)
    scale = ((highest - lowest.float()) / 15).half()
    steps = (blocks - lowest.float()[..., None]) / scale.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    codes = steps.round().clamp(0, 15).to(torch.uint8).flatten(1)
    return codes[:, : matrix.shape[1]], scale, lowest


def rounded(matrix: Tensor, precision: Precision) -> Tensor:
    """What is left of a matrix (N, K), float32."""
    if precision == "int8":
        codes, by_row = quantize_rows(matrix)
        return codes * by_row[:, None]
    nibbles, scale, lowest = quantize_blocks(matrix)
    grid = (part.float().repeat_interleave(native.NIBBLES, dim=1)[:, : matrix.shape[1]] for part in (scale, lowest))
    steps, begin = grid
    return nibbles * steps + begin


def _packed(matrix: Tensor, precision: Precision) -> native.Packed:
    return native.pack(*quantize_rows(matrix)) if precision == "int8" else native.pack_nibbles(*quantize_blocks(matrix))


class _QuantizedLayer(Layer):
    """A layer whose weights are only there as the kernels read them."""

    def __init__(self, layer: Layer, precision: Precision) -> None:
        super(Layer, self).__init__()
        self.attention_norm, self.mlp_norm, self.lora = layer.attention_norm, layer.mlp_norm, None
        self.config = layer.config
        self.mixing: nn.Parameter | None = None
        self.dense: native.DenseLayer = native.DenseLayer(
            config=layer.config,
            attention_norm=layer.attention_norm.float(),
            mlp_norm=layer.mlp_norm.float(),
            qkv=_packed(layer.qkv, precision),
            out=_packed(layer.out, precision),
            gate_up=_packed(layer.gate_up[native.in_pairs(len(layer.gate_up))], precision),
            down=_packed(layer.down, precision),
        )

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> Projected:
        return Projected(*self.dense.project(x, cos, sin))

    def end(self, x: Tensor, heads: Tensor, recompute: bool = False) -> Tensor:
        self.dense.finish(x, heads)
        return x

    def mix(self, heads: Tensor) -> Tensor:
        assert self.mixing is not None, "a memory that mixes heads by itself says so"
        return F.linear(heads.transpose(1, 2).flatten(2), self.mixing).to(wide(self.mixing.dtype))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        still = x.new_zeros(1, 1, 1, self.config.head_dim // 2)
        query, _, key, value = self.dense.project(x, still + 1, still)
        return query, key, value


def _rounded_layer(layer: Layer, precision: Precision) -> Layer:
    found = copy.copy(layer)
    found._modules, found._parameters = dict(layer._modules), dict(layer._parameters)
    for name in ("qkv", "out", "gate_up", "down"):
        setattr(found, name, _rounded(getattr(layer, name), precision))
    return found


def _rounded(matrix: Tensor, precision: Precision) -> nn.Parameter:
    return nn.Parameter(rounded(matrix, precision).to(matrix.dtype), requires_grad=False)


class _QuantizedHead(Head):
    """A head whose matrix is only there as the kernel reads it."""

    def __init__(self, head: Head) -> None:
        super(Head, self).__init__()
        self._norm, self._eps = head.norm.float(), head.eps
        self._packed = _packed(head.matrix, "int8")

    def forward(self, hidden: Tensor) -> Tensor:
        return native.read_out(hidden, self._norm, self._eps, self._packed)
