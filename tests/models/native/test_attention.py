"""The kernel of our own beside plain softmax in float32. Where it cannot run, torch's does the work."""

from __future__ import annotations

import shutil
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import library as operators

from models import native
from models.attention import attend_with_mass
from models.native.compiled import compiled

_CPU = Path("/proc/cpuinfo")
CAPABLE = _CPU.exists() and "avx512_bf16" in _CPU.read_text() and shutil.which("g++") is not None
capable = pytest.mark.skipif(not CAPABLE, reason="needs a processor with AVX-512 BF16, and g++")


def drawn(*shape: int, seed: int) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.5).bfloat16()


def plain(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = query.float() @ keys.float().transpose(-1, -2) / values.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias.float()
    return scores.softmax(dim=-1) @ values.float(), scores.logsumexp(dim=-1)


def assert_equals_plain(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
    out, mass = native.attend(query, keys, values, bias)
    expected, expected_mass = plain(query, keys, values, bias)
    assert (out.float() - expected).abs().max() < 0.02  # values reach 6, of which bfloat16 keeps 0.016
    torch.testing.assert_close(mass, expected_mass, atol=1e-5, rtol=1e-5)


@capable
def test_it_is_built() -> None:
    assert compiled() is not None
    assert native.available(torch.device("cpu"), torch.bfloat16)
    assert not native.available(torch.device("cpu"), torch.float32)
    assert not native.available(torch.device("meta"), torch.bfloat16)


@capable
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (6, 64), (48, 65), (77, 200), (384, 516), (35, 1983)])
def test_equals_plain_softmax(rows: int, count: int, size: int) -> None:
    query, keys, values = (
        drawn(2, 3, rows, size, seed=0),
        drawn(2, 3, count, size, seed=1),
        drawn(2, 3, count, size, seed=2),
    )
    hidden = torch.rand(2, 1, rows, count, generator=torch.Generator().manual_seed(3)) < 0.3
    hidden[..., 0] = False
    for bias in (None, torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill(hidden, -torch.inf)):
        assert_equals_plain(query, keys, values, bias)


@capable
def test_a_bias_is_added_and_not_only_looked_at() -> None:
    query, keys, values = drawn(1, 2, 20, 64, seed=0), drawn(1, 2, 70, 64, seed=1), drawn(1, 2, 70, 64, seed=2)
    bias = drawn(1, 2, 20, 70, seed=3)
    assert_equals_plain(query, keys, values, bias)


@capable
@pytest.mark.parametrize("more", [2, 6, 64])
def test_keys_may_have_more_dimensions_than_values(more: int) -> None:
    query, keys, values = (
        drawn(2, 3, 35, 64 + more, seed=0),
        drawn(2, 3, 90, 64 + more, seed=1),
        drawn(2, 3, 90, 64, seed=2),
    )
    assert native.suits(query, keys, values)
    assert_equals_plain(query, keys, values, None)


@capable
def test_what_lies_apart_in_memory_is_taken_as_it_is() -> None:
    wide = drawn(5, 90, 2, 128, seed=1)
    keys, values = wide.transpose(1, 2)[3:, :, 7:80, :64], wide.transpose(1, 2)[1:3, :, :73, 64:]
    query = drawn(2, 40, 2, 64, seed=2).transpose(1, 2)
    bias = torch.zeros(1, 1, 80, 80, dtype=torch.bfloat16)[..., 40:, :73].masked_fill(
        torch.eye(80)[:40, :73] > 0, -torch.inf
    )
    for one in (bias.expand(2, 2, -1, -1), bias):
        assert_equals_plain(query, keys, values, one)


@capable
def test_a_query_that_sees_nothing_gets_nothing() -> None:
    query, keys, values = drawn(1, 1, 9, 64, seed=0), drawn(1, 1, 30, 64, seed=1), drawn(1, 1, 30, 64, seed=2)
    bias = torch.zeros(1, 1, 9, 30, dtype=torch.bfloat16)
    bias[..., 4, :] = -torch.inf
    out, mass = native.attend(query, keys, values, bias)
    expected, _ = native.attend(query, keys, values, None)
    assert not out[0, 0, 4].any()
    assert mass[0, 0, 4] == -torch.inf
    others = [row for row in range(9) if row != 4]
    assert torch.equal(out[0, 0, others], expected[0, 0, others])


@capable
def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    query, keys, values = (
        drawn(1, 1, 12, 64, seed=0) * 30,
        drawn(1, 1, 90, 64, seed=1) * 30,
        drawn(1, 1, 90, 64, seed=2),
    )
    out, mass = native.attend(query, keys, values, None)
    expected, expected_mass = plain(query, keys, values, None)
    assert (out.float() - expected).abs().max() < 0.02
    torch.testing.assert_close(mass, expected_mass, atol=1e-2, rtol=1e-5)


@capable
def test_what_is_no_number_is_not_hidden() -> None:
    query, keys, values = drawn(1, 1, 8, 64, seed=0), drawn(1, 1, 20, 64, seed=1), drawn(1, 1, 20, 64, seed=2)
    query[..., 3, 5] = torch.nan
    out, mass = native.attend(query, keys, values, None)
    assert out[0, 0, 3].isnan().all()
    assert mass[0, 0, 3].isnan()
    assert out[0, 0, 4].isfinite().all()


@capable
def test_threads_change_nothing() -> None:
    query, keys, values = drawn(1, 3, 200, 64, seed=0), drawn(1, 3, 300, 64, seed=1), drawn(1, 3, 300, 64, seed=2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(native.attend(query, keys, values, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@capable
def test_torch_knows_it_as_an_operator() -> None:
    query, keys, values = drawn(1, 3, 20, 64, seed=0), drawn(1, 3, 30, 64, seed=1), drawn(1, 3, 30, 64, seed=2)
    operators.opcheck(native.attend, (query, keys, values, None))
    operators.opcheck(native.attend, (query[..., :62].contiguous(), keys[..., :62].contiguous(), values, None))


@capable
def test_it_takes_only_what_it_suits() -> None:
    query, keys, values = drawn(1, 3, 20, 64, seed=0), drawn(1, 3, 30, 64, seed=1), drawn(1, 3, 30, 64, seed=2)
    assert native.suits(query, keys, values)
    assert not native.suits(query.float(), keys.float(), values.float())
    assert not native.suits(query, keys, values, torch.zeros(1, 1, 20, 30))
    assert not native.suits(query[..., :32], keys[..., :32], values[..., :32])
    assert not native.suits(query[..., :63], keys[..., :63], values)
    assert not native.suits(query, keys.transpose(-1, -2).contiguous().transpose(-1, -2), values)
    learning = query.clone().requires_grad_()
    assert not native.suits(learning, keys, values)
    with torch.no_grad():
        assert native.suits(learning, keys, values)


def test_a_library_that_does_not_load_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_text("no library")
    spec = spec_from_file_location("models.native._kernels", tmp_path / "_kernels.so")
    assert spec is not None
    monkeypatch.setattr("models.native.compiled.find_spec", lambda _: spec)
    assert compiled.__wrapped__() is None
    monkeypatch.setattr("models.native.compiled.find_spec", lambda _: None)
    assert compiled.__wrapped__() is None


def test_without_it_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = drawn(1, 3, 2, 20, 64, seed=0), drawn(1, 3, 30, 64, seed=1), drawn(1, 3, 30, 64, seed=2)
    monkeypatch.setattr("models.native.attention.compiled", lambda: None)
    assert not native.suits(query.flatten(2, 3), keys, values)
    out, mass = attend_with_mass(query, keys, values)
    expected, expected_mass = plain(query.flatten(2, 3), keys, values, None)
    assert (out.flatten(2, 3).float() - expected).abs().max() < 0.02
    torch.testing.assert_close(mass.flatten(2, 3), expected_mass, atol=1e-3, rtol=1e-3)
