"""Choosing tokens, beside brute force over the definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ConfigError
from models.sampling import Sampler, Sampling, filtered, penalize

NOTHING = torch.empty(0, dtype=torch.int64)
LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, -torch.inf, 0.0])


def draw(sampling: Sampling, count: int, logits: Tensor = LOGITS) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.sample(logits, NOTHING).token for _ in range(count)]


def brute_force(logits: list[float], sampling: Sampling) -> set[int]:
    """The ids that may be drawn: each filter looks at what the ones before it have left."""
    highest = max(logits)
    weight = {i: math.exp((x - highest) / sampling.temperature) for i, x in enumerate(logits) if x > -math.inf}
    likeliest = sorted(weight, key=lambda i: -weight[i])
    if sampling.top_k:
        likeliest = likeliest[: sampling.top_k]
    total, before, kept = sum(weight[i] for i in likeliest), 0.0, []
    for i in likeliest:
        if before < sampling.top_p * total:
            kept.append(i)
        before += weight[i]
    return {i for i in kept if weight[i] >= sampling.min_p * weight[likeliest[0]]}


@settings(deadline=None)
@given(
    # Differences of at least .2 and levels at odd fractions keep float32 off every border.
    st.lists(st.integers(-25, 25), min_size=1, max_size=30, unique=True).map(lambda xs: [x / 5 for x in xs]),
    st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    st.integers(0, 12),
    st.sampled_from([0.0123, 0.377, 0.613, 0.951, 1.0]),
    st.sampled_from([0.0, 0.0137, 0.2713, 0.9001, 1.0]),
)
def test_filters_leave_what_their_definitions_leave(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    left = filtered(torch.tensor(logits), sampling)
    assert set(left.nonzero().flatten().tolist()) == brute_force(logits, sampling)
    plain = torch.softmax(torch.tensor(logits) / temperature, -1)
    torch.testing.assert_close(left / left.sum(), plain.where(left > 0, 0) / plain[left > 0].sum())


def test_frequencies_are_the_probabilities() -> None:
    sampling = Sampling(temperature=1.3, seed=5)
    count = 6000
    expected = torch.softmax(LOGITS / 1.3, -1) * count
    seen = torch.bincount(torch.tensor(draw(sampling, count)), minlength=6)
    possible = expected > 0
    assert seen[~possible].sum() == 0
    chi_square = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: one seed in a thousand would fail


def test_greedy_takes_the_likeliest_and_a_low_temperature_comes_to_the_same() -> None:
    assert draw(Sampling(temperature=0), 3) == [0, 0, 0]
    for temperature in (1e-2, 1e-6, 1e-38, 1e-50, 5e-324):
        assert draw(Sampling(temperature=temperature, seed=1), 20) == [0] * 20, temperature


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    one, again, other = (draw(Sampling(temperature=2, seed=seed), 50) for seed in (3, 3, 4))
    assert one == again != other
    assert draw(Sampling(temperature=2), 50) != draw(Sampling(temperature=2), 50)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_skipping_is_drawing_without_looking(count: int) -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    sampler = Sampler(sampling)
    sampler.skip(count)
    assert [sampler.sample(LOGITS, NOTHING).token for _ in range(20)] == draw(sampling, count + 20)[count:]


def test_filters_do_not_shift_the_random_stream() -> None:
    def second(top_k: int) -> int:
        sampler = Sampler(Sampling(temperature=1, seed=9, top_k=top_k))
        sampler.sample(LOGITS, NOTHING)
        return sampler.sample(torch.tensor([0.0] * 1000), NOTHING).token

    # Equal logits are all as likely as the likeliest, so top-k leaves every one of them.
    assert second(0) == second(1) == second(3)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_what_has_no_probability_is_never_drawn(seed: int, allowed: int) -> None:
    logits = torch.full((40,), -torch.inf)
    logits[torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:allowed]] = 1.0
    assert all(logits[token] == 1 for token in draw(Sampling(temperature=1, seed=seed, top_p=0.9), 5, logits))


def test_the_penalty_pushes_both_signs_down_once_however_often_seen() -> None:
    logits = torch.tensor([2.0, -1.0, 0.0, 3.0, -torch.inf])
    out = penalize(logits, torch.tensor([0, 1, 1, 0, 4, 2]), 2.0)
    assert out.tolist() == [1.0, -2.0, 0.0, 3.0, -math.inf]
    assert logits.tolist() == [2.0, -1.0, 0.0, 3.0, -math.inf]
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0))
    assert sampler.sample(torch.tensor([2.0, 1.5]), torch.tensor([0])).token == 1
    assert sampler.sample(torch.tensor([2.0, 1.5]), NOTHING).token == 0


def test_logprobs_are_the_models_own_whatever_the_filters_do() -> None:
    expected = LOGITS.log_softmax(-1)
    sampling = Sampling(temperature=0.1, top_k=2, logprobs=3, seed=1, repetition_penalty=5.0)
    sample = Sampler(sampling).sample(LOGITS, torch.tensor([0]))
    assert sample.logprob == pytest.approx(float(expected[sample.token]))
    assert [token for token, _ in sample.top] == [0, 3, 1]
    assert [value for _, value in sample.top] == pytest.approx(expected[[0, 3, 1]].tolist())


def test_logprobs_may_be_none_zero_or_more_than_there_are() -> None:
    def sample(count: int | None) -> Any:
        return Sampler(Sampling(temperature=0, logprobs=count)).sample(LOGITS, NOTHING)

    assert (sample(None).logprob, sample(None).top) == (None, ())
    assert sample(0).logprob is not None
    assert sample(0).top == ()
    assert len(sample(100).top) == 6


def test_logits_are_left_as_they_were() -> None:
    logits = LOGITS.clone()
    sampling = Sampling(temperature=0.5, top_k=2, top_p=0.5, min_p=0.5, repetition_penalty=2, logprobs=2)
    Sampler(sampling).sample(logits, torch.tensor([0, 3]))
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-0.1, math.nan, math.inf)),
        ("top_p", (0.0, -1.0, 1.01, math.nan)),
        ("top_k", (-1,)),
        ("min_p", (-0.1, 1.1, math.nan)),
        ("repetition_penalty", (0.0, -1.0, math.nan, math.inf)),
        ("logprobs", (-1,)),
        ("seed", (2**64, -(2**63) - 1)),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        chosen: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError, match=name):
            Sampling(**chosen)


def test_a_flat_choice_among_thousands_keeps_its_share_of_them() -> None:
    logits = torch.linspace(0, 1, 6_000)
    kept = filtered(logits, Sampling(temperature=1.0, top_p=0.9)).nonzero().squeeze(-1)
    probabilities = logits.softmax(dim=-1).flip(0)
    expected = int((probabilities.cumsum(0) - probabilities < 0.9).sum())
    assert len(kept) == pytest.approx(expected, abs=2)  # rounding decides about the last
    assert kept.min() == 6_000 - len(kept)
