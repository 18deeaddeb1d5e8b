"""Which of `infini`'s answers a query head takes and how much of it: none while nothing is stored."""

from __future__ import annotations

import pytest
import torch

from models.asked import Asked, Beside
from models.state import MemoryState, TensorSpec
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.small_infini import WIDE, ask, fold, memory, settings, started
from tests.models.sessions import build, random_tokens, read, window_config


def test_every_query_head_reads_the_memory_of_its_own_group() -> None:
    for rule in ("linear", "gated_delta"):
        infini = memory(rule=rule)
        state = started(infini)
        keys = torch.ones(1, 2, 16, 2, dtype=torch.float64)
        fold(infini, state, keys, keys * torch.tensor([2.0, 7.0])[None, :, None, None])
        found = ask(infini, state, 1, 1)
        assert found is not None
        assert found.out[0, :, :, 0, 0].round().tolist() == [[2, 2], [7, 7]]
        infini.gate[0] = torch.tensor([-WIDE, 0, WIDE, 0])  # by query head: (group 0: 0, 1; group 1: 2, 3)
        found = ask(infini, state, 1, 1)
        assert found is not None
        assert found.gate is not None
        assert found.gate[0, :, :, 0, 0].tolist() == [[pytest.approx(0), 0.5], [pytest.approx(1), 0.5]]


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_there_is_nothing_to_read_before_a_token_other_than_a_sink_was_folded(rule: str) -> None:
    infini = memory(rule=rule, sinks=16, layers=(1,))
    state = started(infini)
    ones = torch.ones(1, 2, 16, 2, dtype=torch.float64)
    fold(infini, state, ones, ones, layer=1)
    assert not any(tensor.any() for tensor in state.tensors().values())
    assert ask(infini, state, 1, 1, folded=(16,), layer=1) is None
    assert ask(infini, state, 1, 1, folded=(32,), layer=0) is None
    assert ask(infini, state, 1, 1, folded=(32,), layer=1) is not None


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_a_row_that_has_folded_nothing_is_told_apart_and_its_answer_is_finite(rule: str) -> None:
    infini = memory(rule=rule)
    state = MemoryState.empty(infini.spec(), 2)
    ones = torch.ones(1, 2, 16, 2, dtype=torch.float64)
    fold(infini, state.select([1]), ones, ones)
    found = ask(infini, state, 0, 0, folded=(0, 16))
    assert found is not None
    assert found.filled is not None
    assert found.filled.tolist() == [False, True]
    assert found.out.isfinite().all()
    assert not found.out[0].any()
    both = ask(infini, state, 0, 0, folded=(16, 16))
    assert both is not None
    assert both.filled is None


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_gradients_are_finite_where_nothing_is_stored_and_where_keys_are_zero(rule: str) -> None:
    infini = memory(rule=rule)
    for parameter in infini.parameters():
        parameter.requires_grad_(True)
    state = UnrolledState.start({**infini.spec(), "position": TensorSpec((), torch.int64)}, 2)
    keys = torch.zeros(2, 2, 16, 2, dtype=torch.float64, requires_grad=True)
    fold(infini, state, keys, keys + 1, counted=torch.tensor([[False], [True]]))  # nothing of the first row
    queries = torch.zeros(2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    turn = torch.zeros(1, 1, 1, 1)
    found = infini.read(0, state, Asked(queries, queries, turn, turn, [0, 16], [0, 16]))
    assert isinstance(found, Beside)
    assert found.gate is not None
    wanted = [keys, queries, *infini.parameters()]
    for gradient in torch.autograd.grad((found.out * found.gate).sum(), wanted, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_a_shut_gate_is_the_window_to_the_last_bit(checkpoint: Checkpoint, rule: str) -> None:
    shut = build(checkpoint, settings(rule=rule, sinks=4, gate_init=-200.0))
    plain = build(checkpoint, window_config())
    tokens = random_tokens(shut, 150)
    assert torch.equal(read(shut, tokens, (50,))[0], read(plain, tokens, (50,))[0])
