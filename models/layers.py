"""The parts of a decoder layer: norm, rotary embedding, projections and feed-forward network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import native
from models.config import ModelConfig
from models.lora import AttentionLora


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums, norms and statistics: float32, or float64 where the weights are float64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467, eq. 4) in x's dtype, which is wide: x (..., D)."""
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


class Rotary:
    """Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

    Angles are taken in float64: at position 10^6 a float32 angle would already be wrong by 0.06 rad.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str,
        factors: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = wide(dtype)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        frequency = config.rope_theta**-exponent  # (d/2,)
        if factors is not None:
            frequency = frequency / factors.double().cpu()
        elif config.rope_scaling is not None:
            scaling = config.rope_scaling
            turns = scaling.original_context * frequency / (2 * math.pi)
            blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            blend = blend.clamp(0, 1)
            frequency = frequency * (blend + (1 - blend) / scaling.factor)
        self._frequency = frequency.to(device)

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions (B, T): each (B, 1, T, d/2), wide, to broadcast over heads."""
        angle = positions.to(torch.float64)[:, None, :, None] * self._frequency
        return angle.cos().to(self._dtype), angle.sin().to(self._dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, heads, T, d) by its positions; `-sin` turns it back. Computed wide, returned in x's dtype."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class Projected:
    """What a layer's attention works with: queries (B, H, T, d), as projected and turned by their positions, and turned keys and
    values (B, K, T, d), all in the compute dtype."""

    query: Tensor
    near_query: Tensor
    key: Tensor
    value: Tensor


class Layer(nn.Module):
    """Weights of one decoder layer, projections that read the same input fused. Hidden vectors x (B, T, D) are wide."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()

        def weight(*names: str) -> nn.Parameter:
            parts = [tensors[f"{prefix}.{name}.weight"] for name in names]
            return nn.Parameter(torch.cat(parts) if len(parts) > 1 else parts[0], requires_grad=False)

        self.qkv = weight("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = weight("self_attn.o_proj")
        self.gate_up = weight("mlp.gate_proj", "mlp.up_proj")
        self.down = weight("mlp.down_proj")
        self.attention_norm = weight("input_layernorm")
        self.mlp_norm = weight("post_attention_layernorm")
        self.lora: AttentionLora | None = None
        self.dense: native.DenseLayer | None = None
        self.config = config

    def adapted(self, lora: AttentionLora) -> Layer:
        """A layer over the same weights with `lora` beside them, which can be trained."""
        layer = copy.copy(self)
        layer._modules = dict(self._modules)
        layer.lora = lora
        return layer

    def merged(self) -> Layer:
        """A layer in whose weights its adaptation is contained: as fast as one without, for matrices of its own."""
        if self.lora is None:
            return self
        layer = copy.copy(self)
        layer._modules, layer._parameters = dict(self._modules), dict(self._parameters)
        qkv, out = self.lora.merged(self.qkv, self.out)
        layer.qkv, layer.out = nn.Parameter(qkv, requires_grad=False), nn.Parameter(out, requires_grad=False)
        layer.lora = None
        return layer

    def begin(self, x: Tensor, cos: Tensor, sin: Tensor) -> Projected:
        """The half before attention, for tokens at the positions of a rotary table."""
        query, key, value = self.project(x)
        return Projected(query, rotate(query, cos, sin), rotate(key, cos, sin), value)

    def end(self, x: Tensor, heads: Tensor, recompute: bool = False) -> Tensor:
        """The half behind it, given what its heads (B, H, T, d) found: the next layer's x. This one's may be overwritten.

        `recompute` is whether a backward pass computes the feed-forward network again instead of keeping what it went through.
        """
        x = x + self.mix(heads)
        if not (recompute and x.requires_grad):
            return x + self.feed_forward(x)
        added = checkpoint(self.feed_forward, x, use_reentrant=False)
        assert isinstance(added, Tensor)
        return x + added

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, d), keys and values (B, K, T, d) without rotation, in the weights' dtype."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        normed = rms_norm(x, self.attention_norm, config.rms_norm_eps).to(self.qkv.dtype)
        qkv = F.linear(normed, self.qkv)
        if self.lora is not None:
            qkv = qkv + self.lora.qkv(normed)
        split = qkv.unflatten(-1, (heads + 2 * kv_heads, config.head_dim)).transpose(1, 2)
        query, key, value = split.split((heads, kv_heads, kv_heads), dim=1)
        return query, key, value

    def mix(self, heads: Tensor) -> Tensor:
        """What attention adds to the residual stream, (B, T, D) wide, from its heads (B, H, T, d)."""
        joined = heads.transpose(1, 2).flatten(2)
        out = F.linear(joined, self.out)
        if self.lora is not None:
            out = out + self.lora.out(joined)
        return out.to(wide(self.out.dtype))

    def feed_forward(self, x: Tensor) -> Tensor:
        """What the SwiGLU network (arXiv 2002.05202) adds to the residual stream, (B, T, D) wide."""
        normed = rms_norm(x, self.mlp_norm, self.config.rms_norm_eps).to(self.gate_up.dtype)
        gate, up = F.linear(normed, self.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down).to(x.dtype)


class Head(nn.Module):
    """The last norm, and the matrix that makes scores of tokens of what it gives."""

    def __init__(self, norm: nn.Parameter, matrix: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.norm, self.matrix, self.eps = norm, matrix, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Wide logits (..., V) of hidden outputs (..., D), wide."""
        normed = rms_norm(hidden, self.norm, self.eps).to(self.matrix.dtype)
        return F.linear(normed, self.matrix).to(wide(self.matrix.dtype))
