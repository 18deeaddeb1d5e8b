"""What is written, where a memory decides about it: by its own calls, or in training by what a task marks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from models.errors import ConfigError
from models.memory.continuous import Continuous
from models.memory.strength import Marked
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.open_feedback import feedback_of, opened
from tests.models.memory.open_feedback import settings as open_settings
from tests.models.memory.small_continuous import KV_HEADS, SEGMENT, config, fold, fold_all, memory, segments
from tests.models.sessions import feed, random_tokens, read


def marks(*places: int, length: int, begin: int = 0) -> Marked:
    """One sequence that begins at a position of its session, with some of its places marked."""
    found = torch.zeros(1, length, dtype=torch.bool)
    found[0, list(places)] = True
    return Marked(found, torch.tensor([begin]))


def test_a_segment_is_marked_if_any_of_its_tokens_is() -> None:
    places = torch.zeros(3, 32, dtype=torch.bool)
    places[0, 8], places[1, 15] = True, True
    marked = Marked(places, torch.tensor([100, 100, 50]))
    starts = torch.tensor([100, 100, 50])
    found = [marked.within(starts + 8 * number, 8).tolist() for number in range(-2, 6)]
    none = [False] * 3
    assert found == [none, none, none, [True, True, False], none, none, none, none]


def test_which_token_of_an_answer_stands_where() -> None:
    answers = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 4, 2]])
    marked = Marked(answers > 0, torch.tensor([10, 20]), answers)
    found = marked.answering(torch.tensor([12, 24]), 4, 3)
    assert found is not None
    assert found.shape == (2, 3, 4)
    # (row, feedback token, place in the block); what stands behind the end of the second row is nothing
    assert found.nonzero().tolist() == [[0, 0, 3], [0, 1, 0], [0, 2, 1], [1, 1, 1]]
    assert Marked(answers > 0, torch.tensor([10, 20])).answering(torch.tensor([12, 24]), 4, 3) is None


def taught(**changes: float) -> Continuous:
    continuous = memory(gated=True, write_taught=0.5, **changes)
    continuous.losses = []
    return continuous


def values_after(continuous: Continuous, state: MemoryState, number: int) -> Tensor:
    fold(continuous, state, number * SEGMENT, segments(number), segments(number))
    return state.read("continuous_values", 0).clone()


@pytest.mark.parametrize("write_init", [0.1, 0.9])
def test_in_training_what_is_marked_is_written_and_nothing_else(write_init: float) -> None:
    continuous = taught(write_init=write_init)
    continuous.marked = marks(2 * SEGMENT + 5, length=4 * SEGMENT)
    state = fold_all(continuous, segments(1), segments(1))
    first = state.read("continuous_values", 0).clone()
    assert torch.equal(values_after(continuous, state, 1), first)
    second = values_after(continuous, state, 2)
    torch.testing.assert_close(second, fold_all(memory(), segments(1, 2), segments(1, 2)).read("continuous_values", 0))
    assert torch.equal(values_after(continuous, state, 3), second)


def test_the_calls_are_told_by_their_cross_entropy() -> None:
    continuous = taught(write_init=0.9)
    continuous.marked = marks(SEGMENT, length=3 * SEGMENT)
    continuous.requires_grad_(True)
    state = fold_all(continuous, segments(1), segments(1))
    assert continuous.losses is not None
    continuous.losses.clear()
    for number in (1, 2):
        values_after(continuous, state, number)
    layers = len(config().memory_layers(continuous._model))
    wanted, unwanted = (-0.5 / layers * torch.tensor(share, dtype=torch.float64).log() for share in (0.9, 0.1))
    torch.testing.assert_close(torch.stack(continuous.losses).detach(), torch.stack((wanted, unwanted)))
    torch.stack(continuous.losses).sum().backward()
    assert continuous.write_offset.grad is not None
    slope = 0.5 / layers / KV_HEADS * ((0.9 - 1) + (0.9 - 0))
    torch.testing.assert_close(continuous.write_offset.grad[0], torch.full((KV_HEADS,), slope, dtype=torch.float64))


@pytest.mark.parametrize("unknown", ["not training", "nothing marked", "not taught"])
def test_elsewhere_the_calls_decide(unknown: str) -> None:
    continuous = taught(write_init=0.9) if unknown != "not taught" else memory(gated=True, write_init=0.9)
    continuous.losses = None if unknown == "not training" else []
    continuous.marked = None if unknown == "nothing marked" else marks(length=4 * SEGMENT)
    state = fold_all(continuous, segments(1), segments(1))
    folded = values_after(continuous, state, 2)
    torch.testing.assert_close(folded, fold_all(memory(), segments(1, 2), segments(1, 2)).read("continuous_values", 0))
    assert not continuous.losses


def test_feedback_is_updated_by_marked_blocks_alone(checkpoint: Checkpoint) -> None:
    decoder = opened(checkpoint, gated=True, write_taught=1.0, layers=(1,))
    feedback, tokens = feedback_of(decoder), random_tokens(decoder, 64)
    feedback.losses, feedback.marked = [], marks(40, length=64)
    state, seen = decoder.empty_state(1), []
    for begin in range(0, 64, 16):
        feed(decoder, state, tokens[begin : begin + 16])
        seen.append(state.read("feedback").clone())
    changes = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    assert changes == [False, True, False]
    assert len(feedback.losses) == 4
    assert all(loss > 0 for loss in feedback.losses)


def test_feedback_tokens_are_updated_by_the_tokens_of_the_answer_that_they_should_find(checkpoint: Checkpoint) -> None:
    told = {"write_taught": 1.0, "answers_taught": 1.0}
    decoder = opened(checkpoint, torch.float32, layers=(1,), gated=True, carry_initial=True, **told)
    feedback, tokens = feedback_of(decoder), random_tokens(decoder, 32)
    answers = torch.zeros(1, 32, dtype=torch.int64)
    answers[0, [3, 4, 20]] = torch.tensor([2, 3, 5])
    feedback.losses, feedback.marked = [], Marked(answers > 0, torch.tensor([0]), answers)
    state, seen = decoder.empty_state(1), []
    for begin in (0, 16):
        feed(decoder, state, tokens[begin : begin + 16])
        seen.append(state.read("feedback", 0)[0].clone())
    assert [number for number in range(6) if not torch.equal(seen[0][number], seen[1][number])] == [4]
    feedback.losses = feedback.marked = None
    feedback.write_offset.fill_(-1.0)
    _, untouched = read(decoder, tokens[:16])
    start = untouched.read("feedback", 0)[0]
    assert [number for number in range(6) if not torch.equal(start[number], seen[0][number])] == [1, 2]


@pytest.mark.parametrize("name", ["write_taught", "answers_taught"])
def test_a_weight_that_cannot_be_is_refused(name: str) -> None:
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"{name} must be 0"):
            open_settings(gated=True, **{name: weight})
