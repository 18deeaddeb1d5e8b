"""Attention over the ring, and how what a memory answers joins it: in the same softmax, or beside it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native
from models.asked import Beside, Far, Grid
from models.layers import wide


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of query (B, K, G, T, d) over keys and values (B, K, N, d).

    `bias` (B, 1, G*T, N), in the query's dtype, is 0 where a key is seen and -inf where it is not.
    """
    if native.suits_jointly(query, keys, values):
        return native.attend_jointly(query, keys, values, bias)
    flat = query.flatten(2, 3)
    return F.scaled_dot_product_attention(flat, keys, values, attn_mask=bias).view(query.shape)


def attend_with_mass(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`attend`, and the log-sum-exp of the scaled scores: (B, K, G, T, d) in the values' dtype, (B, K, G, T) wide.

    Without a `bias` every key is seen.
    """
    flat = query.flatten(2, 3)
    if _fused(query, keys, values):
        out, mass = _flash(flat, keys, values, bias)
    else:
        scores = _scores(flat, keys) * query.shape[-1] ** -0.5
        scores = scores if bias is None else scores + bias
        mass = scores.logsumexp(dim=-1)
        out = scores.softmax(dim=-1).to(values.dtype) @ values
    return out.view(query.shape), mass.view(query.shape[:-1])


def attend_beside(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, beside: Beside) -> Tensor:
    """The ring's answer to query (B, r, G, T, d), mixed with what the memory answers beside it."""
    if beside.mass is not None:
        near, near_mass = attend_with_mass(query, keys, values, bias)
        share = torch.sigmoid(beside.mass - near_mass)[..., None]  # e^far / (e^near + e^far)
        share = share if beside.gate is None else share * beside.gate
    else:
        assert beside.gate is not None
        near, share = attend(query, keys, values, bias), beside.gate
    near = near.to(beside.out.dtype)
    mixed = share * beside.out + (near if beside.added else (1 - share) * near)
    if beside.filled is not None:
        mixed = torch.where(beside.filled[:, None, None, None, None], mixed, near)
    return mixed.to(query.dtype)


def attend_jointly(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor, far: Far) -> Tensor:
    """One softmax over near keys (seen by `query`) and far keys (seen by `far_query`), both (B, r, G, T, d).

    Long queries never lay out their scores: near and far are two passes, joined by their log-sum-exp.
    """
    learned = [tensor for tensor in (far.offset, far.slope) if tensor is not None]
    if _fused(query, keys, values, far_query, far.keys, far.values, *learned):
        return _attend_in_two_passes(query, keys, values, bias, far_query, far)
    if query.shape[3] >= _LONG and far.plain:
        return _attend_in_one_pass(query, keys, values, bias, far_query, far)
    scale = query.shape[-1] ** -0.5
    near = _scores(query.flatten(2, 3), keys) + bias  # (B, r, G*T, N)
    asking, offset = _on_grid(far_query.flatten(2, 3), far.key_grid)
    far_keys, far_values = (_codes(x).to(query.dtype) for x in (far.keys, far.values))
    away = _scores(asking, far_keys)  # (B, r, G*T, C)
    if far.key_scale is not None:
        away = away * far.key_scale[:, :, None, :]
    if offset is not None:
        away = away + offset
    if far.offset is not None:
        away = away + far.offset.flatten(2, 3)[..., None] / scale
    if far.slope is not None and far.age is not None:
        away = away - far.slope.flatten(2, 3)[..., None] * far.age[:, None, None] / scale
    if far.visible is not None:
        away = away.masked_fill(~far.visible[:, :, None, :], -torch.inf)
    weight = torch.softmax(torch.cat((near, away), dim=-1) * scale, dim=-1)
    weight_near, weight_far = weight.split((near.shape[-1], away.shape[-1]), dim=-1)
    share = weight_far.sum(dim=-1, keepdim=True)
    if far.value_scale is not None:
        weight_far = weight_far * far.value_scale[:, :, None, :]
    out: Tensor = weight_near.to(values.dtype) @ values
    found = weight_far.to(values.dtype) @ far_values
    return (out + _off_grid(found, share, far.value_grid).to(out.dtype)).view(query.shape)


_LONG = 16
"""Tokens from which two passes of the fused kernel are quicker than one explicit softmax."""


def _fused(query: Tensor, *others: Tensor) -> bool:
    """Whether the fused kernel is taken: it gives a log-sum-exp on the CPU only, and without its gradient."""
    if query.shape[3] < _LONG or query.device.type != "cpu":
        return False
    return not any(tensor.requires_grad for tensor in (query, *others))


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """query (B, r, Q, d) on keys (B, r, N, d): (B, r, Q, N), wide."""
    return (query @ keys.transpose(-1, -2)).to(wide(query.dtype))


def _attend_in_two_passes(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor, far: Far
) -> Tensor:
    near, near_mass = _flash(query.flatten(2, 3), keys, values, bias)
    far_bias = None
    if far.visible is not None:
        hidden = torch.zeros_like(far.visible, dtype=query.dtype).masked_fill(~far.visible, -torch.inf)
        far_bias = hidden[:, :, None, :].expand(-1, -1, near.shape[2], -1)
    far_keys = _laid_out(far.keys, far.key_scale, query, None if far.slope is None else far.age)
    far_values = _laid_out(far.values, far.value_scale, query)
    asking, offset = _on_grid(far_query.flatten(2, 3), far.key_grid)
    size = query.shape[-1]
    if far.slope is not None:
        slope = F.pad(-far.slope.flatten(2, 3)[..., None] * math.sqrt(size), (0, 1)).to(query.dtype)
        asking = torch.cat((asking, slope), dim=-1)
    away, far_mass = _flash(asking, far_keys, far_values, far_bias)
    if offset is not None:
        far_mass = far_mass + offset[..., 0] * query.shape[-1] ** -0.5
    if far.offset is not None:
        far_mass = far_mass + far.offset.flatten(2, 3)
    away = _off_grid(away, torch.ones_like(far_mass)[..., None], far.value_grid)
    if far.visible is not None:
        # Where nothing is visible torch's kernel reports a mass of e^0; such a session's memory must weigh nothing.
        far_mass = far_mass.masked_fill(~far.visible.any(dim=-1, keepdim=True), -torch.inf)
    share = torch.sigmoid(near_mass - far_mass)[..., None]  # (B, r, G*T, 1): e^near / (e^near + e^far)
    return (near.to(share.dtype) * share + away.to(share.dtype) * (1 - share)).to(query.dtype).view(query.shape)


def _attend_in_one_pass(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, far_query: Tensor, far: Far
) -> Tensor:
    """For gradients: a query of twice the dimensions, of which near keys meet the first half and far ones the second.

    That is one softmax for torch's fused kernel, which keeps no scores for its backward pass: a training takes a fraction of the
    memory, and two thirds of the time, where far keys are thousands.
    """
    size, count = query.shape[-1], far.keys.shape[2]
    asking = torch.cat((query, far_query), dim=-1).flatten(2, 3)
    far_keys = F.pad(far.keys, (size, 0))
    if far.offset is not None:  # what queries say in two dimensions more, of which far keys have the first
        offset = F.pad(far.offset.flatten(2, 3)[..., None] * math.sqrt(size), (0, 1))
        asking = torch.cat((asking, offset.to(asking.dtype)), dim=-1)
        far_keys = F.pad(F.pad(far_keys, (0, 1), value=1.0), (0, 1))
    more = asking.shape[-1] - size
    all_keys = torch.cat((F.pad(keys, (0, more)), far_keys), dim=2)
    all_values = F.pad(torch.cat((values, far.values), dim=2), (0, more))  # the kernel wants as many dimensions
    seen = F.pad(bias, (0, count))
    found = F.scaled_dot_product_attention(asking, all_keys, all_values, attn_mask=seen, scale=size**-0.5)
    return found[..., :size].view(query.shape)


def pack_codes(x: Tensor) -> Tensor:
    """x (..., d) rounded to the sixteen odd numbers from −15 to 15, two a byte: (..., d/2) uint8."""
    low, high = ((x + 15) / 2).round().clamp(0, 15).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def _codes(x: Tensor) -> Tensor:
    """What `pack_codes` packed, int8; anything else as it is."""
    if x.dtype != torch.uint8:
        return x
    return torch.cat((x & 15, x >> 4), dim=-1).view(torch.int8) * 2 - 15


def _laid_out(x: Tensor, scale: Tensor | None, query: Tensor, age: Tensor | None = None) -> Tensor:
    """Far keys or values (B, r, C, d) in the query's type; with ages two dimensions more, for kernels want them in pairs."""
    found = _codes(x).to(query.dtype)
    if scale is not None:
        found = found * scale[..., None].to(query.dtype)
    if age is None:
        return found
    ages = F.pad(age[:, None, :, None], (0, 1)).to(query.dtype)
    return torch.cat((found, ages.expand(-1, found.shape[1], -1, -1)), dim=-1)


def _on_grid(query: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor | None]:
    """query (B, r, Q, d) for keys that are codes, and what its scores on them lack, (B, r, Q, 1) wide."""
    if grid is None:
        return query, None
    exact = query.to(grid.spread.dtype)
    return (exact * grid.spread[:, :, None]).to(query.dtype), exact @ grid.centre[..., None]


def _off_grid(found: Tensor, share: Tensor, grid: Grid | None) -> Tensor:
    """A mixture of values (B, r, Q, d) from one of their codes; their weights sum up to `share` (B, r, Q, 1)."""
    if grid is None:
        return found
    return found.to(grid.spread.dtype) * grid.spread[:, :, None] + share * grid.centre[:, :, None]


def _flash(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, (B, r, Q, d) and (B, r, Q) wide, for values of d dimensions.

    Queries and keys may have more; scores are scaled by 1/√d all the same.
    """
    if native.suits(query, keys, values, bias):
        found: tuple[Tensor, Tensor] = native.attend(query, keys, values, bias)
        return found
    # The public function keeps the log-sum-exp to itself; this is what it calls.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    size = values.shape[-1]
    padded = F.pad(values, (0, keys.shape[-1] - size))
    out, mass = kernel(query, keys, padded, attn_mask=bias, scale=size**-0.5)
    return out[..., :size], mass
