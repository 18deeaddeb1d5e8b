"""Attention of few queries over keys as they lie in a state, beside one explicit softmax in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models import attention, native
from models.asked import Far, Grid
from models.attention import attend_jointly, pack_codes
from tests.models.native.test_attention import capable


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(batch: int, queries: int, count: int) -> Tensor:
    hidden = torch.rand(batch, 1, queries, count, generator=torch.Generator().manual_seed(9)) < 0.3
    hidden[..., 0] = False
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def far_keys(kind: str, batch: int, queries: int, size: int, count: int = 133) -> Far:
    """So many far keys of two heads, of three."""
    keys, values = drawn(batch, 2, count, size, seed=3), drawn(batch, 2, count, size, seed=4)
    far = Far(
        heads=[0, 2],
        keys=keys.bfloat16(),
        values=values.bfloat16(),
        visible=None if batch == 1 else drawn(batch, 2, count, seed=8) > -0.5,
        offset=drawn(batch, 2, 3, queries // 3, seed=6),
        slope=drawn(batch, 2, 3, queries // 3, seed=7),
        age=drawn(batch, count, seed=15).abs(),
    )
    if kind == "bfloat16":
        return far
    key_scale, value_scale = drawn(2, batch, 2, count, seed=5).abs() / 40
    scaled = replace(far, key_scale=key_scale, value_scale=value_scale)
    if kind == "int8":
        codes = [(x * 40).round().clamp(-127, 127).to(torch.int8) for x in (keys, values)]
        return replace(scaled, keys=codes[0], values=codes[1])
    grids = [Grid(drawn(batch, 2, size, seed=seed), drawn(batch, 2, size, seed=seed + 1).abs()) for seed in (10, 12)]
    packed = [pack_codes(x * 6) for x in (keys, values)]
    return replace(scaled, keys=packed[0], values=packed[1], key_grid=grids[0], value_grid=grids[1])


@capable
@pytest.mark.parametrize("kind", ["near", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    ("batch", "length", "size", "near_count", "far_count"),
    [
        *((1, 1, 64, 77, 133), (2, 1, 128, 77, 133), (2, 5, 32, 77, 133), (1, 15, 64, 77, 133), (1, 2, 256, 77, 133)),
        *(
            (1, 16, 64, 516, 1984),
            (2, 43, 64, 77, 133),
            (1, 128, 128, 700, 1300),
            (2, 20, 32, 65, 20),
            (1, 17, 96, 81, 645),
        ),
    ],
)
def test_equals_one_explicit_softmax(
    kind: str,
    batch: int,
    length: int,
    size: int,
    near_count: int,
    far_count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query = drawn(batch, 3, 3, length, size, seed=0).bfloat16()
    keys, values = (drawn(batch, 3, near_count, size, seed=seed).bfloat16() for seed in (1, 2))
    bias = seen(batch, 3 * length, near_count)
    far = None if kind == "near" else far_keys(kind, batch, 3 * length, size, far_count)
    far_query = drawn(batch, 2, 3, length, size, seed=14).bfloat16()
    assert native.suits_jointly(query, keys, values, far_query, far)
    found = native.attend_jointly(query, keys, values, bias.bfloat16(), far_query, far)
    monkeypatch.setattr(attention, "_LONG", 1000)
    expected = attention.attend(query.float(), keys.float(), values.float(), bias)
    if far is not None:
        if kind == "bfloat16":
            far = replace(far, keys=far.keys.float(), values=far.values.float())
        heads = far.heads
        expected[:, heads] = attend_jointly(
            query[:, heads].float(), keys[:, heads].float(), values[:, heads].float(), bias, far_query.float(), far
        )
    # For many queries weights are rounded, too, and far queries once more where there is a grid.
    assert (found.float() - expected).norm() < (2**-8 if length < native.FEW else 2**-7) * expected.norm()


@capable
def test_gradients_go_the_long_way() -> None:
    query = drawn(1, 3, 3, 1, 64, seed=0).bfloat16()
    keys, values = drawn(1, 3, 77, 64, seed=1).bfloat16(), drawn(1, 3, 77, 64, seed=2).bfloat16()
    far = far_keys("bfloat16", 1, 3, 64)
    assert native.suits_jointly(query, keys, values, query[:, :2], far)
    taught = replace(far, offset=far.offset.requires_grad_())  # type: ignore[union-attr]
    assert not native.suits_jointly(query, keys, values, query[:, :2], taught)
    with torch.no_grad():
        assert native.suits_jointly(query, keys, values, query[:, :2], taught)
    assert not native.suits_jointly(query.requires_grad_(), keys, values)


@capable
def test_keys_that_nobody_sees_are_left_out() -> None:
    query = drawn(1, 1, 3, 48, 64, seed=0).bfloat16()
    keys, values = drawn(1, 1, 300, 64, seed=1).bfloat16(), drawn(1, 1, 300, 64, seed=2).bfloat16()
    bias = torch.full((1, 1, 144, 300), -torch.inf).bfloat16()
    bias[..., 70:90] = 0
    bias[..., 20:40, 250:] = 0
    keys[:, :, 128:192] = torch.nan  # a whole tile
    found = native.attend_jointly(query, keys, values, bias)
    expected = attention.attend(query.float(), keys.float().nan_to_num(0), values.float(), bias.float())
    assert (found.float() - expected).norm() < 2**-7 * expected.norm()


@capable
def test_what_is_not_a_number_stays_so_for_those_who_see_it() -> None:
    query = drawn(1, 1, 1, 20, 64, seed=0).bfloat16()
    keys, values = drawn(1, 1, 70, 64, seed=1).bfloat16(), drawn(1, 1, 70, 64, seed=2).bfloat16()
    query[:, :, :, 3] = torch.nan
    found = native.attend_jointly(query, keys, values, torch.zeros(1, 1, 20, 70).bfloat16())
    assert found[:, :, :, 3].isnan().all()
    assert found.isnan().sum() == 64


@capable
def test_other_precisions_go_another_way() -> None:
    keys = drawn(1, 3, 77, 64, seed=1)
    assert not native.suits_jointly(drawn(1, 3, 3, 1, 64, seed=0), keys, keys)
