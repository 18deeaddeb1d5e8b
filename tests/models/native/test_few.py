"""Attention of few queries over keys as they lie in a state, beside one explicit softmax in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models import attention, native
from models.attention import Far, Grid, attend_jointly, pack_codes
from tests.models.native.test_attention import capable


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(batch: int, queries: int, count: int) -> Tensor:
    hidden = torch.rand(batch, 1, queries, count, generator=torch.Generator().manual_seed(9)) < 0.3
    hidden[..., 0] = False
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def far_keys(kind: str, batch: int, queries: int, size: int) -> Far:
    """133 far keys of two heads, of three."""
    keys, values = drawn(batch, 2, 133, size, seed=3), drawn(batch, 2, 133, size, seed=4)
    far = Far(
        heads=[0, 2],
        keys=keys.bfloat16(),
        values=values.bfloat16(),
        visible=None if batch == 1 else drawn(batch, 2, 133, seed=8) > -0.5,
        offset=drawn(batch, 2, 3, queries // 3, seed=6),
        slope=drawn(batch, 2, 3, queries // 3, seed=7),
        age=drawn(batch, 133, seed=15).abs(),
    )
    if kind == "bfloat16":
        return far
    key_scale, value_scale = drawn(2, batch, 2, 133, seed=5).abs() / 40
    scaled = replace(far, key_scale=key_scale, value_scale=value_scale)
    if kind == "int8":
        codes = [(x * 40).round().clamp(-127, 127).to(torch.int8) for x in (keys, values)]
        return replace(scaled, keys=codes[0], values=codes[1])
    grids = [Grid(drawn(batch, 2, size, seed=seed), drawn(batch, 2, size, seed=seed + 1).abs()) for seed in (10, 12)]
    packed = [pack_codes(x * 6) for x in (keys, values)]
    return replace(scaled, keys=packed[0], values=packed[1], key_grid=grids[0], value_grid=grids[1])


@capable
@pytest.mark.parametrize("kind", ["near", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("batch", "length", "size"), [(1, 1, 64), (2, 1, 128), (2, 5, 32), (1, 15, 64), (1, 2, 256)])
def test_equals_one_explicit_softmax(
    kind: str, batch: int, length: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = drawn(batch, 3, 3, length, size, seed=0).bfloat16()
    keys, values = drawn(batch, 3, 77, size, seed=1).bfloat16(), drawn(batch, 3, 77, size, seed=2).bfloat16()
    bias = seen(batch, 3 * length, 77)
    far = None if kind == "near" else far_keys(kind, batch, 3 * length, size)
    far_query = drawn(batch, 2, 3, length, size, seed=14).bfloat16()
    assert native.suits_few(query, keys, values, far_query, far)
    found = native.attend_few(query, keys, values, bias.bfloat16(), far_query, far)
    monkeypatch.setattr(attention, "_LONG", 1000)
    expected = attention.attend(query.float(), keys.float(), values.float(), bias)
    if far is not None:
        if kind == "bfloat16":
            far = replace(far, keys=far.keys.float(), values=far.values.float())
        heads = far.heads
        expected[:, heads] = attend_jointly(
            query[:, heads].float(), keys[:, heads].float(), values[:, heads].float(), bias, far_query.float(), far
        )
    assert (found.float() - expected).norm() < 2**-8 * expected.norm()


@capable
def test_gradients_go_the_long_way() -> None:
    query = drawn(1, 3, 3, 1, 64, seed=0).bfloat16()
    keys, values = drawn(1, 3, 77, 64, seed=1).bfloat16(), drawn(1, 3, 77, 64, seed=2).bfloat16()
    far = far_keys("bfloat16", 1, 3, 64)
    assert native.suits_few(query, keys, values, query[:, :2], far)
    taught = replace(far, offset=far.offset.requires_grad_())  # type: ignore[union-attr]
    assert not native.suits_few(query, keys, values, query[:, :2], taught)
    with torch.no_grad():
        assert native.suits_few(query, keys, values, query[:, :2], taught)
    assert not native.suits_few(query.requires_grad_(), keys, values)


@capable
def test_many_queries_and_other_precisions_go_another_way() -> None:
    keys = drawn(1, 3, 77, 64, seed=1)
    assert not native.suits_few(drawn(1, 3, 3, 1, 64, seed=0), keys, keys)
    assert not native.suits_few(drawn(1, 3, 3, native.FEW, 64, seed=0).bfloat16(), keys.bfloat16(), keys.bfloat16())
