"""The parts of a decoder layer: norm, rotary embedding, and the joint attention over near and far keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467, eq. 4) in float32, whatever the weights are: x (..., D)."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps)


class Rotary:
    """Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

    Angles are taken in float64: at position 10^6 a float32 angle would already be wrong by 0.06 rad.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str, factors: Tensor | None = None) -> None:
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
        """cos and sin for positions (B, T): each (B, 1, T, d/2) float32, to broadcast over heads."""
        angle = positions.to(torch.float64)[:, None, :, None] * self._frequency
        return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, heads, T, d) by its positions; `-sin` turns it back. Computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class Far:
    """What a memory adds to the softmax of some heads: keys and values that all lie at one fixed far distance.

    `heads` lists the key/value heads (r of them). `keys` and `values` are (B, r, C, d), in the compute dtype or as
    integers with `key_scale` and `value_scale` (B, r, C). `visible` (B, r, C) is False where nothing is stored; None
    means that all is visible.
    """

    heads: list[int]
    keys: Tensor
    values: Tensor
    visible: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of query (B, K, G, T, d) over keys and values (B, K, N, d).

    `bias` (B, 1, G*T, N), in the query's dtype, is 0 where a key is seen and -inf where it is not.
    """
    out = F.scaled_dot_product_attention(query.flatten(2, 3), keys, values, attn_mask=bias)
    return out.view(query.shape)


def attend_jointly(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor, far: Far) -> Tensor:
    """One softmax over near keys (seen by `query`) and far keys (seen by `far_query`), both (B, r, G, T, d).

    Long queries never lay out their scores: near and far are two passes, joined by their log-sum-exp.
    """
    if query.shape[3] >= _LONG and query.device.type == "cpu":
        return _attend_in_two_passes(query, keys, values, bias, far_query, far)
    scale = query.shape[-1] ** -0.5
    near = (query.flatten(2, 3) @ keys.transpose(-1, -2)).float() + bias  # (B, r, G*T, N)
    away = (far_query.flatten(2, 3) @ far.keys.to(query.dtype).transpose(-1, -2)).float()  # (B, r, G*T, C)
    if far.key_scale is not None:
        away = away * far.key_scale[:, :, None, :]
    if far.visible is not None:
        away = away.masked_fill(~far.visible[:, :, None, :], -torch.inf)
    weight = torch.softmax(torch.cat((near, away), dim=-1) * scale, dim=-1)
    weight_near, weight_far = weight.split((near.shape[-1], away.shape[-1]), dim=-1)
    if far.value_scale is not None:
        weight_far = weight_far * far.value_scale[:, :, None, :]
    out: Tensor = weight_near.to(values.dtype) @ values
    out = out + weight_far.to(values.dtype) @ far.values.to(values.dtype)
    return out.view(query.shape)


_LONG = 16
"""Tokens from which two passes of the fused kernel are quicker than one explicit softmax."""


def _attend_in_two_passes(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor, far: Far
) -> Tensor:
    near, near_mass = _flash(query.flatten(2, 3), keys, values, bias)
    far_bias = None
    if far.visible is not None:
        hidden = torch.zeros_like(far.visible, dtype=query.dtype).masked_fill(~far.visible, -torch.inf)
        far_bias = hidden[:, :, None, :].expand(-1, -1, near.shape[2], -1)
    far_keys, far_values = far.keys.to(query.dtype), far.values.to(query.dtype)
    if far.key_scale is not None:
        far_keys = far_keys * far.key_scale[..., None].to(query.dtype)
    if far.value_scale is not None:
        far_values = far_values * far.value_scale[..., None].to(query.dtype)
    away, far_mass = _flash(far_query.flatten(2, 3), far_keys, far_values, far_bias)
    if far.visible is not None:
        # Where nothing is visible the kernel reports a mass of e^0; such a session's memory must weigh nothing.
        far_mass = far_mass.masked_fill(~far.visible.any(dim=-1, keepdim=True), -torch.inf)
    share = torch.sigmoid(near_mass - far_mass)[..., None]  # (B, r, G*T, 1): e^near / (e^near + e^far)
    return (near.float() * share + away.float() * (1 - share)).to(query.dtype).view(query.shape)


def _flash(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, (B, r, Q, d) and (B, r, Q) float32."""
    # The public function keeps the log-sum-exp to itself; this is what it calls.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, mass = kernel(query, keys, values, attn_mask=bias)
    return out, mass
