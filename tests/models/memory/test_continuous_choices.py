"""What a continuous memory may do beside the paper: leave folds out, and ask its signal as ∞-Video does."""

from __future__ import annotations

import pytest
import torch

from models.unrolled import UnrolledState
from tests.models.memory.small_continuous import (
    KV_HEADS,
    SEGMENT,
    SIZE,
    fold,
    fold_all,
    memory,
    noise,
    read,
    segments,
    signal,
)


def test_a_head_that_wants_no_fold_keeps_its_signal_as_it_is() -> None:
    continuous = memory(gated=True)
    with torch.no_grad():
        continuous.write_offset[0, 0] = -0.1
        continuous.write_offset[0, 1] = 0.1
    state = fold_all(continuous, segments(1), segments(1))
    first = state.read("continuous_values").clone()
    assert first[0, 0].any()  # the first fold happens in all heads
    for start in range(1, 20):
        fold(continuous, state, start * SEGMENT, segments(2), segments(2))
    kept, folded = state.read("continuous_values", 0)[0]
    assert torch.equal(kept, first[0, 0, 0])
    plain = fold_all(memory(), segments(1, *[2] * 19), segments(1, *[2] * 19)).read("continuous_values", 0)[0]
    torch.testing.assert_close(folded, plain[1])


def test_one_token_is_enough_to_call_for_a_fold_and_sinks_call_for_nothing() -> None:
    continuous = memory(gated=True, write_init=0.01, sinks=3)
    with torch.no_grad():
        continuous.write_weight[0, :, 0] = 10.0
    quiet, loud = segments(0).clone(), segments(0).clone()
    loud[:, 40, 0] = 2.0
    state = fold_all(continuous, quiet, segments(1))
    before = state.read("continuous_values", 0).clone()
    fold(continuous, state, SEGMENT, quiet, segments(2))
    assert torch.equal(state.read("continuous_values", 0), before)
    fold(continuous, state, SEGMENT, loud, segments(2))
    changed = (state.read("continuous_values", 0) != before).flatten(2).any(dim=-1)
    assert changed.tolist() == [[True] * KV_HEADS]


def test_what_a_fold_is_called_by_is_learned_though_it_happens_whole_or_not_at_all() -> None:
    """The gradient of a call is that of a fold by a share: towards what the fold makes of it, times the sigmoid's slope."""
    continuous = memory(gated=True, write_init=0.3)
    continuous.requires_grad_(True)
    state = UnrolledState.start(continuous.spec(), 1)
    fold(continuous, state, 0, segments(1), segments(1))
    before = state.read("continuous_values", 0).detach()
    fold(continuous, state, SEGMENT, segments(2), segments(2))
    after = state.read("continuous_values", 0)
    after.sum().backward()
    whole = fold_all(memory(), segments(1, 2), segments(1, 2)).read("continuous_values", 0)
    wanted = (whole - before)[0].sum(dim=(1, 2)) * 0.3 * 0.7
    assert torch.equal(after.detach(), before)
    assert continuous.write_offset.grad is not None
    torch.testing.assert_close(continuous.write_offset.grad[0], wanted)


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
