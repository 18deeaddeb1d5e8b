"""What `infini` writes by strength and decay: the rule gated_delta."""

from __future__ import annotations

import pytest
import torch

from models.memory.infini import GatedDeltaInfini
from models.memory.strength import Marked
from tests.models.memory.small_infini import answer, memory, started, write


def test_unit_keys_are_written_by_their_strength() -> None:
    infini = memory(rule="gated_delta", write_init=0.75, decay_init=1e-9)
    state = started(infini)
    write(infini, state, [((3, 0), (4, 8)), ((0, -5), (1, 1))])
    assert answer(infini, state, 0.1, 0) == pytest.approx([3, 6])
    assert answer(infini, state, 0, -7) == pytest.approx([0.75, 0.75])
    write(infini, state, [((9, 0), (4, 8))])
    assert answer(infini, state, 1, 0) == pytest.approx([3.75, 7.5])
    write(infini, state, [((9, 0), (0, 0))])
    assert answer(infini, state, 1, 0) == pytest.approx([3.75 / 4, 7.5 / 4])
    assert answer(infini, state, 0, -1) == pytest.approx([0.75, 0.75])


def test_all_that_is_stored_fades_with_every_token() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=0.25)
    state = started(infini)
    write(infini, state, [((1, 0), (4, 8)), *[((0, 1), (0, 0))] * 3])
    assert answer(infini, state, 1, 0) == pytest.approx([2 * 0.75**3, 4 * 0.75**3])


def test_strength_and_decay_are_learned_from_key_and_value() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=1e-9)
    assert isinstance(infini, GatedDeltaInfini)
    infini.write_weight[0, :] = torch.tensor([0, 0, 50.0, 0])
    infini.decay_weight[0, :] = torch.tensor([0, 50.0, 0, 0])
    state = started(infini)
    write(infini, state, [((1, 0), (1, 5)), ((1, 0), (-1, 7))])
    assert answer(infini, state, 1, 0) == pytest.approx([1, 5])  # the first value opens the write, the second shuts it
    write(infini, state, [((0, 1), (-1, 0))])
    assert answer(infini, state, 1, 0) == pytest.approx([0, 0], abs=1e-9)


def test_a_write_below_the_floor_does_not_happen() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=0, write_floor=0.2)
    assert isinstance(infini, GatedDeltaInfini)
    infini.write_weight[0, :] = torch.tensor([0, 0, 1.0, 0])
    state = started(infini)
    write(infini, state, [((1, 0), (0, 8))])
    assert answer(infini, state, 1, 0) == pytest.approx([0, 8 * (0.5 - 0.2) / 0.8])
    before = state.read("infini_memory").clone()
    write(infini, state, [((1, 0), (-1.5, 9)), ((0, 1), (-2, 3))])  # strengths .18 and .12
    assert torch.equal(state.read("infini_memory"), before)


def test_writing_costs_something_while_training() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=0, write_cost=3.0)
    infini.losses = []
    write(infini, started(infini), [((1, 0), (0, 8)), ((0, 1), (2, 2))], layer=1)
    assert torch.stack(infini.losses).tolist() == pytest.approx([3.0 / 2 * 0.5])  # two layers


def test_writing_what_nobody_will_ask_for_costs_something_while_training() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=0, waste_cost=3.0)
    infini.losses = []
    write(infini, started(infini), [((1, 0), (0, 8)), ((0, 1), (2, 2))], layer=1)
    assert not infini.losses  # nobody can say what will be asked for
    infini.marked = Marked(torch.tensor([[True, False, False, False]]), torch.tensor([0]))
    write(infini, started(infini), [((1, 0), (0, 8)), ((0, 1), (2, 2))], [((1, 0), (0, 8)), ((0, 1), (2, 2))], layer=1)
    assert torch.stack(infini.losses).tolist() == pytest.approx([3.0 / 2 * 0.5 / 2, 3.0 / 2 * 0.5])  # two layers
