"""Weights in eight-bit integers, one scale an output: half the bytes of bfloat16, and twice the products a second where the
processor has instructions for them.

On a CPU with AVX-512 VNNI and BF16 the dense halves of layers and the head run in `models/native/dense.h`, where activations are
eight-bit integers, too, with a scale for every 64 of them. Everywhere else weights are rounded alike, and computed with as before.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models import native
from models.layers import Head, Layer, Projected
from models.transformer import Decoder


class Quantizer:
    """Quantizes decoders. What several of them share is quantized once."""

    def __init__(self) -> None:
        self._layers: dict[Layer, Layer] = {}
        self._heads: dict[nn.Module, Head] = {}

    def quantize(self, decoder: Decoder) -> Decoder:
        """The same decoder over quantized weights. Norms and the embedding of tokens stay as they are."""
        weights = decoder.weights
        layers = {index: self._layer(weights.layer(index)) for index in range(len(weights.layers))}
        return Decoder(weights.with_layers(layers, self._head(weights.head)), decoder.memory)

    def _layer(self, layer: Layer) -> Layer:
        if layer not in self._layers:
            suited = native.suits_layer(layer.config, layer.qkv, layer.out, layer.gate_up, layer.down)
            self._layers[layer] = _QuantizedLayer(layer) if suited else _rounded_layer(layer)
        return self._layers[layer]

    def _head(self, head: Head) -> Head:
        if head not in self._heads:
            suited = native.suits_matrix(head.matrix)
            self._heads[head] = _QuantizedHead(head) if suited else Head(head.norm, _rounded(head.matrix), head.eps)
        return self._heads[head]


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, K) from -127 to 127, int8, and what they are multiplied with by row, (N,) float32."""
    scale = matrix.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (matrix.float() / scale[:, None]).round().to(torch.int8), scale


class _QuantizedLayer(Layer):
    """A layer whose weights are only there as the kernels read them."""

    def __init__(self, layer: Layer) -> None:
        super(Layer, self).__init__()
        self.attention_norm, self.mlp_norm, self.lora = layer.attention_norm, layer.mlp_norm, None
        self.config = layer.config
        self.dense: native.DenseLayer = native.DenseLayer(
            config=layer.config,
            attention_norm=layer.attention_norm.float(),
            mlp_norm=layer.mlp_norm.float(),
            qkv=native.pack(*quantize_rows(layer.qkv)),
            out=native.pack(*quantize_rows(layer.out)),
            gate_up=native.pack_gated(*quantize_rows(layer.gate_up)),
            down=native.pack(*quantize_rows(layer.down)),
        )

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> Projected:
        return Projected(*self.dense.project(x, cos, sin))

    def end(self, x: Tensor, heads: Tensor, recompute: bool = False) -> Tensor:
        self.dense.finish(x, heads)
        return x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        still = x.new_zeros(1, 1, 1, self.config.head_dim // 2)
        query, _, key, value = self.dense.project(x, still + 1, still)
        return query, key, value


def _rounded_layer(layer: Layer) -> Layer:
    rounded = copy.copy(layer)
    rounded._modules, rounded._parameters = dict(layer._modules), dict(layer._parameters)
    for name in ("qkv", "out", "gate_up", "down"):
        setattr(rounded, name, _rounded(getattr(layer, name)))
    return rounded


def _rounded(matrix: Tensor) -> nn.Parameter:
    codes, scale = quantize_rows(matrix)
    return nn.Parameter((codes * scale[:, None]).to(matrix.dtype), requires_grad=False)


class _QuantizedHead(Head):
    """A head whose matrix is only there as the kernel reads it."""

    def __init__(self, head: Head) -> None:
        super(Head, self).__init__()
        self._norm, self._eps = head.norm.float(), head.eps
        self._packed = native.pack(*quantize_rows(head.matrix))

    def forward(self, hidden: Tensor) -> Tensor:
        return native.read_out(hidden, self._norm, self._eps, self._packed)
