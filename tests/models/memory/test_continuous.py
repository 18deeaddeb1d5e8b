"""What a continuous memory holds: a signal that is fitted, contracted, sampled where queries looked, and averaged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.errors import ConfigError
from models.memory.continuous import Continuous
from models.state import MemoryState, spec_nbytes
from tests.models.memory.small_continuous import (
    HEADS,
    KV_HEADS,
    MODEL,
    SEGMENT,
    SIZE,
    asked,
    config,
    fold,
    fold_all,
    look,
    memory,
    noise,
    read,
    segments,
    signal,
)

GRID = torch.linspace(0, 1, 4001, dtype=torch.float64)


def test_the_first_fold_fits_its_tokens_over_the_whole_of_the_signal() -> None:
    tokens = torch.linspace(-1, 1, SEGMENT).sin().double()[:, None].expand(KV_HEADS, SEGMENT, SIZE)
    state = fold_all(memory(), tokens, -tokens)
    middles = (torch.arange(SEGMENT, dtype=torch.float64) + 0.5) / SEGMENT
    inner = slice(6, -6)  # beyond the ends there is nothing, and the fit falls off towards it
    for name, wanted in (("keys", tokens[0, :, 0]), ("values", -tokens[0, :, 0])):
        assert (signal(memory(), state, middles, name) - wanted)[inner].abs().max() < 0.05


@pytest.mark.parametrize("tau", [0.5, 0.75])
def test_segments_lie_in_the_order_of_the_text_each_contracted_by_those_behind_it(tau: float) -> None:
    continuous = memory(tau=tau, basis=256, samples=256, widths=(0.005, 0.01))
    state = fold_all(continuous, segments(7, 7, 7), segments(1, -2, 3))
    borders = [0, tau * tau, tau, 1]
    for begin, end, wanted in zip(borders[:-1], borders[1:], (1, -2, 3), strict=True):
        middle = torch.linspace(begin + (end - begin) * 0.3, end - (end - begin) * 0.3, 20, dtype=torch.float64)
        assert float(signal(continuous, state, middle).mean()) == pytest.approx(wanted, rel=0.03)
        assert float(signal(continuous, state, middle, "keys").mean()) == pytest.approx(7, rel=0.03)


def test_a_fold_leaves_tau_of_what_a_token_weighs() -> None:
    continuous = memory(tau=0.75, basis=256, samples=256, widths=(0.005, 0.01))
    tokens = torch.zeros(KV_HEADS, SEGMENT, SIZE, dtype=torch.float64)
    tokens[:, 40] = 1
    nothing = torch.zeros_like(tokens)
    state = fold_all(continuous, tokens, tokens)
    found = signal(continuous, state, GRID)
    place, weight = float(GRID[found.argmax()]), float(found.mean())
    assert place == pytest.approx((40 + 0.5) / SEGMENT, abs=1e-2)
    assert weight == pytest.approx(1 / SEGMENT, rel=0.02)
    for folds in range(1, 7):
        fold(continuous, state, folds * SEGMENT, nothing, nothing)
        found = signal(continuous, state, GRID)
        assert float(GRID[found.argmax()]) == pytest.approx(place * 0.75**folds, abs=1e-2)
        assert float(found.mean()) == pytest.approx(weight * 0.75**folds, rel=0.03)


def test_fitting_keys_is_projecting_the_fit_of_what_they_are_projected_from() -> None:
    hidden, project = noise(1, 5 * SEGMENT, SIZE), noise(SIZE, SIZE, seed=1)
    continuous = Continuous(replace(MODEL, num_kv_heads=1), config(), torch.float64)
    state = fold_all(continuous, hidden @ project, hidden)
    keys, fitted = state.read("continuous_keys")[0, 0], state.read("continuous_values")[0, 0]
    torch.testing.assert_close(keys, fitted @ project, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 0.05), (0.95, 0.01), (0.5, 0.8), (0.02, 0.1)])
def test_an_answer_is_the_expectation_of_the_signal(mean: float, deviation: float) -> None:
    continuous = memory()
    tokens = noise(KV_HEADS, 3 * SEGMENT, SIZE)
    state = fold_all(continuous, tokens, tokens)
    look(continuous, mean, deviation)
    out = read(continuous, state, noise(1, KV_HEADS, 2, 3, SIZE)).out
    line = torch.linspace(-2, 3, 200_001, dtype=torch.float64)
    density = torch.exp(-((line - mean) ** 2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi))
    wanted = torch.trapezoid(density * signal(continuous, state, line), line)
    assert (out[0, 0, :, :, 0] - wanted).abs().max() < 1e-9


def test_where_a_query_looks_is_affine_in_its_scores() -> None:
    continuous = memory(prior_weight=0.5, prior_width=0.3)
    state = fold_all(continuous, noise(KV_HEADS, SEGMENT, SIZE), noise(KV_HEADS, SEGMENT, SIZE, seed=1))
    query = noise(1, KV_HEADS, 2, 1, SIZE, seed=2)
    with torch.no_grad():
        continuous.spread_bias.copy_(noise(2, HEADS, seed=3))
        continuous.mean_bias.copy_(noise(2, HEADS, seed=4))
    continuous.losses = []
    out = read(continuous, state, query).out[0, :, :, 0]
    divergence = []
    for head in range(HEADS):
        group = head // 2
        scores = state.read("continuous_keys")[0, 0, group] @ query[0, group, head % 2, 0] / math.sqrt(SIZE)
        mean = torch.sigmoid(scores @ continuous.mean[0, head] + continuous.mean_bias[0, head]).item()
        variance = (scores @ continuous.spread[0, head] + continuous.spread_bias[0, head]).exp().log1p().item()
        divergence.append(0.5 * (variance / 0.09 - math.log(variance / 0.09) - 1))
        other = memory()
        look(other, mean, math.sqrt(variance))
        torch.testing.assert_close(out[group, head % 2], read(other, state, query).out[0, group, head % 2, 0])
    assert [loss.item() for loss in continuous.losses] == pytest.approx([0.5 * sum(divergence) / HEADS])


def test_no_density_is_narrower_than_the_least_variance() -> None:
    continuous, floor = memory(min_variance=0.01), memory()
    state = fold_all(continuous, segments(1, 2), segments(1, 2))
    look(continuous, 0.4, 0.001)
    look(floor, 0.4, 0.1)
    query = noise(1, KV_HEADS, 2, 1, SIZE)
    torch.testing.assert_close(read(continuous, state, query).out, read(floor, state, query).out)


@pytest.mark.parametrize("sinks", [4, SEGMENT])
def test_sinks_leave_no_trace_and_take_no_room(sinks: int) -> None:
    continuous = memory(sinks=sinks)
    tokens = noise(KV_HEADS, 2 * SEGMENT, SIZE)
    other = tokens.clone()
    other[:, :sinks] = 1e6
    for name, tensor in fold_all(continuous, tokens, tokens).tensors().items():
        assert torch.equal(tensor, fold_all(continuous, other, other).read(name)), name


def test_the_first_tokens_that_are_no_sinks_have_the_whole_signal() -> None:
    few = fold_all(memory(sinks=SEGMENT // 2), segments(5), segments(5))
    assert signal(memory(), few, GRID[800:-800]).sub(5).abs().max() < 0.25
    tokens = noise(KV_HEADS, 2 * SEGMENT, SIZE)
    behind = fold_all(memory(sinks=SEGMENT), tokens, tokens)
    alone = fold_all(memory(), tokens[:, SEGMENT:], tokens[:, SEGMENT:])
    torch.testing.assert_close(behind.read("continuous_keys"), alone.read("continuous_keys"))


def test_rows_with_nothing_but_sinks_are_answered_by_the_ring_alone() -> None:
    continuous = memory(sinks=SEGMENT)
    query = noise(3, KV_HEADS, 2, 1, SIZE)
    state = MemoryState.empty(continuous.spec(), 3)
    assert continuous.read(0, state, asked(query, 0, SEGMENT, SEGMENT)) is None
    found = read(continuous, state, query, 0, SEGMENT, 2 * SEGMENT)
    assert found.filled is not None
    assert found.filled.tolist() == [False, False, True]
    assert found.out.isfinite().all()
    assert read(continuous, state, query, *[2 * SEGMENT] * 3).filled is None


def test_a_closed_gate_lets_a_twenty_thousandth_through_and_leaves_the_ring_whole() -> None:
    continuous = memory()
    found = read(continuous, fold_all(continuous, segments(1), segments(1)), noise(1, KV_HEADS, 2, 1, SIZE))
    assert found.added
    assert found.gate is not None
    assert found.gate.shape == (KV_HEADS, 2, 1, 1)
    assert found.gate.detach().unique().tolist() == pytest.approx([1 / (1 + math.e**10)])


def test_the_histogram_counts_every_query_of_every_head_since_the_last_fold() -> None:
    continuous = memory(sticky=True, bins=4)
    tokens = noise(KV_HEADS, SEGMENT, SIZE)
    state = fold_all(continuous, tokens, tokens)
    look(continuous, 0.5, 0.25)
    for length in (1, 5):
        read(continuous, state, noise(1, KV_HEADS, 2, length, SIZE))
    # Two bins of a standard deviation on either side of the mean: 34.13 and 13.59 percent.
    per_bin = torch.tensor([0.135905, 0.341345, 0.341345, 0.135905], dtype=torch.float64) * 6 * HEADS
    torch.testing.assert_close(state.read("continuous_looked")[0, 0], per_bin, rtol=1e-5, atol=0)
    assert not state.read("continuous_looked")[0, 1].any()
    fold(continuous, state, SEGMENT, tokens, tokens)
    assert not state.read("continuous_looked").any()


def test_rows_without_a_memory_have_not_looked_at_it() -> None:
    continuous = memory(sticky=True)
    state = MemoryState.empty(continuous.spec(), 2)
    read(continuous, state, noise(2, KV_HEADS, 2, 3, SIZE), 0, SEGMENT)
    looked = state.read("continuous_looked")[:, 0].sum(-1)
    assert looked[0] == 0
    assert looked[1] > 0


def test_a_sticky_memory_that_nobody_looked_at_samples_evenly() -> None:
    tokens = noise(KV_HEADS, 3 * SEGMENT, SIZE)
    plain, sticky = fold_all(memory(), tokens, tokens), fold_all(memory(sticky=True), tokens, tokens)
    torch.testing.assert_close(plain.read("continuous_keys"), sticky.read("continuous_keys"))


def test_what_was_looked_at_takes_more_room_and_the_rest_is_not_lost() -> None:
    continuous = memory(sticky=True, basis=256, samples=256, widths=(0.005, 0.01))
    state = fold_all(continuous, segments(0), segments(0))
    first = segments(0).clone()
    first[:, :32] = -1  # the first half of the text, which nobody looks at
    first[:, 40:48] = 1  # an eighth of it, which everybody looks at
    state = fold_all(continuous, first, first)
    look(continuous, 44 / SEGMENT, 0.01)
    read(continuous, state, noise(1, KV_HEADS, 2, 8, SIZE))
    fold(continuous, state, SEGMENT, segments(0), segments(0))
    old = signal(continuous, state, GRID[: len(GRID) // 2])
    assert (old > 0.5).double().mean() > 0.95
    assert old[: len(GRID) // 100].min() < 0  # a hundredth of the samples lies evenly, half of them there


@pytest.mark.parametrize(("tau", "place"), [(0.5, 0.45), (0.75, 0.5)])
def test_looking_at_one_place_for_ever_never_makes_it_grow(tau: float, place: float) -> None:
    """Without the bound on samples a fit's overshoot, sampled again and again, grows by a tenth at every fold."""
    continuous = memory(sticky=True, tau=tau, basis=32, samples=32, bins=32)
    look(continuous, place, 0.01)
    ones, nothing = segments(1), segments(0)
    state = fold_all(continuous, ones, ones)
    query = noise(1, KV_HEADS, 2, 1, SIZE)
    for folds in range(1, 60):
        read(continuous, state, query)
        fold(continuous, state, folds * SEGMENT, nothing, nothing)
    assert 0.5 < signal(continuous, state, GRID[::40]).abs().max() < 1.3


def test_samples_shorter_than_the_longest_token_are_carried_as_they_are() -> None:
    continuous = memory()
    one, other = noise(KV_HEADS, 6 * SEGMENT, SIZE), noise(KV_HEADS, 6 * SEGMENT, SIZE, seed=1)
    one[:, 0], other[:, 0] = 20, 10
    both, parts = fold_all(continuous, one + other, one), [fold_all(continuous, part, part) for part in (one, other)]
    summed = sum(part.read("continuous_keys") for part in parts)
    torch.testing.assert_close(both.read("continuous_keys"), summed, rtol=1e-9, atol=1e-9)


def test_only_the_chosen_layers_have_a_memory_and_it_weighs_what_the_spec_says() -> None:
    continuous = memory(layers=(1,), sticky=True, bins=10)
    coefficients = 2 * KV_HEADS * 64 * SIZE
    assert spec_nbytes(continuous.spec()) == 8 * (coefficients + 2 * KV_HEADS + 10)
    state = MemoryState.empty(continuous.spec(), 1)
    fold(continuous, state, 0, segments(1), segments(1), layer=0)
    assert not state.read("continuous_keys").any()
    assert [(part.layer, part.slots, part.used) for part in continuous.report(state).layers] == [(1, 64, 0)]
    assert continuous.read(0, state, asked(noise(1, KV_HEADS, 2, 1, SIZE), SEGMENT)) is None
    fold(continuous, state, 0, segments(1), segments(1), layer=1)
    assert [(part.layer, part.slots, part.used) for part in continuous.report(state).layers] == [(1, 64, 128)]


def test_no_gradient_is_lost_or_undefined() -> None:
    continuous = memory(sticky=True)
    tokens = torch.zeros(KV_HEADS, SEGMENT, SIZE, dtype=torch.float64)  # of no length, which a bound divides by
    tokens.requires_grad_()
    state = fold_all(continuous, tokens.expand(-1, -1, -1), tokens)
    found = read(continuous, state, noise(1, KV_HEADS, 2, 3, SIZE))
    assert found.gate is not None
    found.out.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert (tokens.grad != 0).any(dim=(0, 2)).all()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"widths": ()}, "widths"),
        ({"widths": (0.01, 0.0)}, "widths"),
        ({"basis": 63}, "basis"),
        ({"basis": 2}, "basis"),
        ({"samples": 0}, "samples"),
        ({"bins": 0}, "bins"),
        ({"ridge": 0.0}, "ridge"),
        ({"min_variance": 0.0}, "min_variance"),
        ({"prior_width": math.nan}, "prior_width"),
        ({"prior_weight": -1.0}, "prior_weight"),
        ({"tau": 0.0}, "tau"),
        ({"tau": 1.0}, "tau"),
        ({"density": "uniform"}, "density"),
        ({"density": "gibbs", "sticky": True}, "sticky"),
        ({"gated": True, "write_init": 1.0}, "write_init"),
    ],
)
def test_a_signal_that_cannot_be_fitted_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config(**changes)
