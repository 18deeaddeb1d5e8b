"""Attention to the nearest keys, beside a sort of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import native

pytestmark = pytest.mark.skipif(
    not native.available(torch.device("cpu"), torch.bfloat16), reason="no AVX-512 BF16, or no compiler"
)


def drawn(batch: int, heads: int, rows: int, count: int, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count + rows)
    query = torch.randn(batch, heads, rows, size, generator=generator).bfloat16()
    keys, values = torch.randn(2, batch, heads, count, size, generator=generator).bfloat16()
    return query, keys, values


def expected(query: Tensor, keys: Tensor, values: Tensor, nearest: int) -> tuple[Tensor, Tensor]:
    scores = query.double() @ keys.double().transpose(-1, -2) * query.shape[-1] ** -0.5
    best, chosen = scores.topk(min(nearest, keys.shape[2]), dim=-1)
    weights = torch.zeros_like(scores).scatter(-1, chosen, best.softmax(dim=-1))
    return (weights @ values.double()).float(), best.logsumexp(dim=-1).float()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "count", "nearest"), [(1, 1, 1), (7, 33, 32), (13, 705, 5), (30, 3000, 32), (6, 40, 64)]
)
def test_it_finds_what_a_sort_of_all_finds(rows: int, count: int, nearest: int, threads: int) -> None:
    query, keys, values = drawn(2, 3, rows, count)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, mass = native.attend_nearest(query, keys, values, nearest)
    finally:
        torch.set_num_threads(before)
    wanted, wanted_mass = expected(query, keys, values, nearest)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mass, wanted_mass, rtol=1e-4, atol=1e-5)


def test_keys_that_rise_and_fall_do_not_overflow_what_is_kept() -> None:
    """Every key is better than all before it: each of them is a candidate for a while."""
    query, keys, values = drawn(1, 1, 6, 2000)
    keys = torch.linspace(0.01, 4, 2000)[None, None, :, None] * torch.ones(64)
    keys = torch.cat((keys, keys.flip(2)), dim=2).bfloat16()
    values = torch.cat((values, values.flip(2)), dim=2)
    query = query.abs()
    _, mass = native.attend_nearest(query, keys, values, 16)
    torch.testing.assert_close(mass, expected(query, keys, values, 16)[1], rtol=1e-4, atol=1e-5)


def test_each_session_has_as_many_keys_as_are_counted() -> None:
    query, keys, values = drawn(3, 2, 9, 500)
    counts = torch.tensor([500, 0, 77])
    out, mass = native.attend_nearest(query, keys, values, 8, counts)
    for row, count in enumerate(counts.tolist()):
        if not count:
            assert not out[row].any()
            assert (mass[row] == -torch.inf).all()
            continue
        wanted, wanted_mass = expected(query[row], keys[row, :, :count], values[row, :, :count], 8)
        torch.testing.assert_close(out[row], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mass[row], wanted_mass, rtol=1e-4, atol=1e-5)


def test_keys_may_be_a_part_of_something_larger() -> None:
    query, keys, values = drawn(2, 2, 4, 300)
    room = torch.randn(2, 5, 2, 400, 64).bfloat16()
    room[:, 1, :, :300], room[:, 3, :, :300] = keys, values
    out, mass = native.attend_nearest(query, room[:, 1, :, :300], room[:, 3, :, :300], 8)
    one, other = native.attend_nearest(query, keys, values, 8)
    assert torch.equal(out, one)
    assert torch.equal(mass, other)


def test_it_is_for_what_needs_no_gradient() -> None:
    query, keys, values = drawn(1, 1, 4, 40)
    assert native.suits_nearest(query, keys, values)
    assert not native.suits_nearest(query.requires_grad_(), keys, values)
    assert not native.suits_nearest(query.detach().float(), keys, values)
    assert not native.suits_nearest(query.detach()[..., :48], keys, values)
