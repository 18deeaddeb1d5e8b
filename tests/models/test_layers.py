"""Attention over near and far keys beside one plain softmax; norm and rotation beside their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.asked import Far
from models.attention import attend, attend_jointly
from models.config import ModelConfig, RopeScaling
from models.layers import Rotary, rms_norm, rotate

BATCH, HEADS, GROUPS, NEAR, AWAY, SIZE = 3, 2, 2, 9, 6, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_bias(mask: Tensor) -> Tensor:
    """Which keys a token sees (B, 1, 1, T, N), as both groups of queries add it to their scores: (B, 1, G*T, N)."""
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return bias.expand(-1, -1, GROUPS, -1, -1).flatten(2, 3)


def plain(query: Tensor, far_query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, far: Far) -> Tensor:
    """One softmax in float64 over all that is laid side by side."""
    far_keys, far_values = far.keys.double(), far.values.double()
    if far.key_scale is not None and far.value_scale is not None:
        far_keys, far_values = far_keys * far.key_scale[..., None], far_values * far.value_scale[..., None]
    near = torch.einsum("brgtd,brnd->brgtn", query.double(), keys.double()).masked_fill(~mask, -torch.inf)
    away = torch.einsum("brgtd,brnd->brgtn", far_query.double(), far_keys)
    near, away = near / math.sqrt(query.shape[-1]), away / math.sqrt(query.shape[-1])
    if far.offset is not None:
        away = away + far.offset[..., None]
    if far.slope is not None and far.age is not None:
        away = away - far.slope[..., None] * far.age[:, None, None, None]
    if far.visible is not None:
        away = away.masked_fill(~far.visible[:, :, None, None], -torch.inf)
    weight = torch.cat((near, away), dim=-1).softmax(-1)
    return torch.einsum("brgtn,brnd->brgtd", weight, torch.cat((values.double(), far_values), dim=2))


@pytest.mark.parametrize("length", [1, 15, 16, 40])
@pytest.mark.parametrize("stored", ["all", "some", "none in one session"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("looked", [False, True], ids=["as stored", "looked at"])
def test_near_and_far_share_one_softmax(length: int, stored: str, quantized: bool, looked: bool) -> None:
    query, far_query = (random(BATCH, HEADS, GROUPS, length, SIZE, seed=seed) for seed in (1, 2))
    keys, values = random(BATCH, HEADS, NEAR, SIZE, seed=3), random(BATCH, HEADS, NEAR, SIZE, seed=4)
    mask = random(BATCH, 1, 1, length, NEAR, seed=5) > 0
    mask[..., 0] = True
    visible = None if stored == "all" else random(BATCH, HEADS, AWAY, seed=6) > 0
    if visible is not None and stored != "some":
        visible[1] = False
    far_keys, far_values = random(BATCH, HEADS, AWAY, SIZE, seed=7), random(BATCH, HEADS, AWAY, SIZE, seed=8)
    scales = [random(BATCH, HEADS, AWAY, seed=seed).abs() / 50 if quantized else None for seed in (9, 10)]
    if quantized:
        far_keys, far_values = (far_keys * 40).round().to(torch.int8), (far_values * 40).round().to(torch.int8)
    key_scale, value_scale = scales
    far = Far([0, 1], far_keys, far_values, visible, key_scale, value_scale)
    if looked:
        offset, slope = (random(BATCH, HEADS, GROUPS, length, seed=seed) for seed in (11, 12))
        far = replace(far, offset=offset, slope=3 * slope, age=random(BATCH, far_keys.shape[2], seed=13).abs())
    out = attend_jointly(query, keys, values, as_bias(mask), far_query, far)
    torch.testing.assert_close(out.double(), plain(query, far_query, keys, values, mask, far), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [3, 40])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_in_bfloat16_they_share_it_too(length: int, some: bool) -> None:
    """With heads of the size that the kernel of our own takes, where there is one."""
    query, far_query = (random(2, 2, 3, length, 64, seed=seed).bfloat16() for seed in (1, 2))
    keys, values, far_keys, far_values = (random(2, 2, 70, 64, seed=seed).bfloat16() for seed in (3, 4, 5, 6))
    mask = torch.ones(2, 1, 1, length, 70, dtype=torch.bool)
    mask[..., 30:50] = False
    visible = random(2, 2, 70, seed=9) > 0 if some else None
    far = Far([0, 1], far_keys, far_values, visible, offset=random(2, 2, 3, length, seed=7))
    far = replace(far, slope=3 * random(2, 2, 3, length, seed=8), age=torch.linspace(1, 0, 70).expand(2, -1))
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).expand(-1, -1, 3, -1, -1).flatten(2, 3)
    out = attend_jointly(query, keys, values, bias.bfloat16(), far_query, far)
    expected = plain(query, far_query, keys, values, mask, far)
    assert (out.double() - expected).abs().max() < 0.05


@pytest.mark.parametrize("length", [1, 40])
def test_near_alone_equals_a_plain_softmax(length: int) -> None:
    query, keys, values = (
        random(BATCH, HEADS, GROUPS, length, SIZE, seed=1),
        random(BATCH, HEADS, NEAR, SIZE, seed=2),
        random(BATCH, HEADS, NEAR, SIZE, seed=3),
    )
    mask = random(BATCH, 1, 1, length, NEAR, seed=4) > 0
    mask[..., 0] = True
    nothing = Far([0, 1], keys[:, :, :0], values[:, :, :0])
    expected = plain(query, query, keys, values, mask, nothing)
    torch.testing.assert_close(attend(query, keys, values, as_bias(mask)).double(), expected, rtol=0, atol=1e-5)


def config(theta: float = 1e4, scaling: RopeScaling | None = None) -> ModelConfig:
    return ModelConfig(16, 16, 16, 1, 2, 1, SIZE, 1e-5, theta, 512, True, scaling)


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    x = random(1, 1, 3, SIZE)
    positions = torch.tensor([[0, 7, 1_000_003]])
    cos, sin = Rotary(config(), "cpu").table(positions)
    turned = rotate(x, cos, sin)
    for index, position in enumerate(positions[0].tolist()):
        for pair in range(SIZE // 2):
            angle = position * 1e4 ** (-2 * pair / SIZE)
            first, second = float(x[0, 0, index, pair]), float(x[0, 0, index, pair + SIZE // 2])
            expected = (
                first * math.cos(angle) - second * math.sin(angle),
                second * math.cos(angle) + first * math.sin(angle),
            )
            got = (float(turned[0, 0, index, pair]), float(turned[0, 0, index, pair + SIZE // 2]))
            assert got == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(rotate(turned, cos, -sin), x, rtol=0, atol=1e-5)


def test_only_the_distance_between_query_and_key_counts_even_far_out() -> None:
    rotary = Rotary(config(), "cpu")
    query, key = random(1, 1, 1, SIZE, seed=1), random(1, 1, 1, SIZE, seed=2)

    def score(at: int) -> float:
        asked = rotate(query, *rotary.table(torch.tensor([[at + 100]])))
        return float((asked * rotate(key, *rotary.table(torch.tensor([[at]])))).sum())

    assert score(5_000_000) == pytest.approx(score(0), abs=1e-4)


def test_llama_3_scaling_slows_low_frequencies_and_keeps_high_ones() -> None:
    scaling = RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=64)
    one = torch.tensor([[1]])
    plainly = Rotary(config(), "cpu").table(one)[1].asin().flatten()
    slowed = Rotary(config(scaling=scaling), "cpu").table(one)[1].asin().flatten()
    assert slowed[0] == plainly[0]
    torch.testing.assert_close(slowed[-1], plainly[-1] / 8, rtol=1e-5, atol=0)
    given = Rotary(config(), "cpu", factors=torch.tensor([1.0, 2.0, 4.0, 8.0])).table(one)[1].asin().flatten()
    torch.testing.assert_close(given, plainly / torch.tensor([1.0, 2.0, 4.0, 8.0]), rtol=1e-5, atol=0)


def test_norm_is_computed_in_float32_whatever_the_weights_are() -> None:
    x, weight = random(4, 16) * 1e4, random(16, seed=1).bfloat16()
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.float()
    assert rms_norm(x, weight, 1e-5).dtype == torch.float32
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
