"""What a continuous memory holds: a signal that is fitted, contracted, sampled where queries looked, and averaged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.attention import Asked, Beside
from models.config import ModelConfig
from models.errors import ConfigError
from models.memory.continuous import Continuous, ContinuousConfig
from models.state import MemoryState, spec_nbytes
from tests.models.memory.evictions import evicted

SIZE, SEGMENT, HEADS, KV_HEADS = 8, 64, 4, 2
MODEL = ModelConfig(32, 32, 16, 2, HEADS, KV_HEADS, SIZE, 1e-5, 1e4, 512, True)


def config(**changes: Any) -> ContinuousConfig:
    small = {"window": 64, "segment": SEGMENT, "sinks": 0, "basis": 64, "samples": 64, "widths": (0.02, 0.04)}
    return ContinuousConfig(**{**small, "ridge": 1e-3, **changes})


def memory(**changes: Any) -> Continuous:
    return Continuous(MODEL, config(**changes), torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fold(continuous: Continuous, state: MemoryState, start: int, keys: Tensor, values: Tensor, layer: int = 0) -> None:
    """Evict keys and values (K, S, d) of the segment that begins at `start`."""
    continuous.fold(layer, state, evicted(keys[None], values[None], start, sinks=continuous.config.sinks))


def fold_all(continuous: Continuous, keys: Tensor, values: Tensor) -> MemoryState:
    """Evict every whole segment of keys and values (K, n, d)."""
    state = MemoryState.empty(continuous.spec(), 1)
    for start in range(0, keys.shape[1], SEGMENT):
        fold(continuous, state, start, keys[:, start : start + SEGMENT], values[:, start : start + SEGMENT])
    return state


def segments(*numbers: float) -> Tensor:
    """Segments of equal tokens, each filled with its number: (K, n, d)."""
    return torch.tensor(numbers, dtype=torch.float64).repeat_interleave(SEGMENT)[:, None].expand(KV_HEADS, -1, SIZE)


def asked(query: Tensor, *folded: int) -> Asked:
    """Queries (B, K, G, t, d) of sessions that have evicted so many tokens."""
    turn = torch.ones(1, 1, 1, SIZE // 2)
    return Asked(query, query, turn, 0 * turn, list(folded), list(folded))


def read(continuous: Continuous, state: MemoryState, query: Tensor, *folded: int) -> Beside:
    found = continuous.read(0, state, asked(query, *(folded or [SEGMENT])))
    assert isinstance(found, Beside)
    return found


def look(continuous: Continuous, mean: float, deviation: float) -> None:
    """Make every query of every head look at one place, whatever the keys are."""
    with torch.no_grad():
        for weight in (continuous.mean, continuous.spread):
            weight.zero_()
        continuous.mean_bias.fill_(math.log(mean / (1 - mean)))
        continuous.spread_bias.fill_(math.log(math.expm1(deviation**2)))


def signal(continuous: Continuous, state: MemoryState, positions: Tensor, name: str = "values") -> Tensor:
    """X(t) of the first head of layer 0, one channel: written out anew, (n,)."""
    widths = continuous.config.widths
    count = continuous.config.basis // len(widths)
    total = torch.zeros_like(positions)
    for index, weight in enumerate(state.read(f"continuous_{name}")[0, 0, 0, :, 0]):
        centre, width = (index // len(widths)) / (count - 1), widths[index % len(widths)]
        total += weight * torch.exp(-((positions - centre) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    return total


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


def test_a_head_that_wants_no_fold_keeps_its_signal_as_it_is() -> None:
    continuous = memory(gated=True, write_floor=0.2)
    with torch.no_grad():
        continuous.write_offset[0, 0] = -3.0  # a strength of .05
        continuous.write_offset[0, 1] = 30.0
    state = fold_all(continuous, segments(1), segments(1))
    first = state.read("continuous_values").clone()
    assert first[0, 0].any()  # the first fold happens in all heads
    for start in range(1, 20):
        fold(continuous, state, start * SEGMENT, segments(2), segments(2))
    kept, folded = state.read("continuous_values", 0)[0]
    assert torch.equal(kept, first[0, 0, 0])
    plain = fold_all(memory(), segments(1, *[2] * 19), segments(1, *[2] * 19)).read("continuous_values", 0)[0]
    torch.testing.assert_close(folded, plain[1])


def test_the_token_that_asks_for_a_fold_most_decides_and_sinks_ask_for_nothing() -> None:
    continuous = memory(gated=True, write_init=0.01, sinks=3)
    with torch.no_grad():
        continuous.write_weight[0, :, 0] = 10.0
    quiet, loud = segments(0).clone(), segments(0).clone()
    loud[:, 40, 0] = 2.0
    state = fold_all(continuous, quiet, segments(1))
    before = state.read("continuous_values", 0).clone()
    fold(continuous, state, SEGMENT, quiet, segments(2))
    little = (state.read("continuous_values", 0) - before).norm()
    state.write("continuous_values", before, 0)
    fold(continuous, state, SEGMENT, loud, segments(2))
    assert (state.read("continuous_values", 0) - before).norm() > 50 * little


@pytest.mark.parametrize("length", [1, 40])
def test_gibbs_asks_points_of_the_signal_as_if_they_were_tokens(length: int) -> None:
    """Few queries take another way than many."""
    continuous = memory(density="gibbs")
    state = fold_all(continuous, noise(KV_HEADS, 3 * SEGMENT, SIZE), noise(KV_HEADS, 3 * SEGMENT, SIZE, seed=1))
    query = noise(1, KV_HEADS, 2, length, SIZE, seed=2)
    found = read(continuous, state, query, 3 * SEGMENT)
    points = torch.arange(1, 65, dtype=torch.float64) / 64
    assert found.mass is not None
    keys, values = (
        continuous._basis(points) @ state.read(f"continuous_{name}", 0)[:, :, None] for name in ("keys", "values")
    )
    scores = query @ keys.transpose(-1, -2) / SIZE**0.5
    torch.testing.assert_close(found.mass, scores.logsumexp(dim=-1))
    torch.testing.assert_close(found.out, scores.softmax(dim=-1) @ values)
    torch.testing.assert_close(keys[0, 0, 0, :, 0], signal(continuous, state, points, "keys"))


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
        ({"gated": True, "write_floor": 1.0}, "write_floor"),
    ],
)
def test_a_signal_that_cannot_be_fitted_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config(**changes)
