"""Accuracy as it is, and controls that control."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.adapt.evaluate import (
    Trials,
    accuracy,
    folds_behind,
    length_for,
    shuffled_accuracy,
    without_memory,
)
from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel, build_small
from models.adapt.tasks.passkey import Passkey
from models.adapt.train import Trainer
from models.config import MemoryConfig
from models.memory.ring import Ring
from models.state import MemoryState
from models.transformer import Decoder

TASK = Passkey(digits=1, alphabet=4, filler=2)
RING = {"window": 4, "segment": 4, "sinks": 0}


@pytest.fixture(scope="module")
def trained() -> Decoder:
    """A model of one layer, which cannot hand a key on within its window: it has to use its memory."""
    model = build_small(
        SmallModel(layers=1, hidden=32, inner=32),
        TASK.vocab_size,
        "infini",
        {**RING, "rule": "linear", "gate_init": 0.0},
    )
    settings = TrainSettings(first_segments=2, last_segments=5, steps=600, learning_rate=5e-3, warmup=10)
    assert Trainer(model, TASK, settings).run().done
    return model


def test_what_was_learned_is_recalled_and_neither_without_memory_nor_from_anothers(trained: Decoder) -> None:
    task = replace(TASK, depth=0.0)
    trials = Trials(length=length_for(trained.memory.config, 1), count=200, batch=64)
    assert trials.length == 16
    assert accuracy(trained, task, trials) > 0.9
    assert accuracy(without_memory(trained), task, trials) < 0.45
    assert shuffled_accuracy(trained, task, trials) < 0.45


def test_shuffling_leaves_the_ring_alone(trained: Decoder) -> None:
    task = replace(TASK, depth=1.0)
    trials = Trials(length=8, count=64)
    assert shuffled_accuracy(trained, task, trials) == accuracy(trained, task, trials) > 0.9


def test_memories_are_exchanged_as_far_ahead_of_the_question_as_was_said_but_not_before_there_are_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_small(SmallModel(), TASK.vocab_size, "infini", RING)
    seen: list[int] = []

    def note(_: Decoder, state: MemoryState) -> None:
        seen.append(state.positions[0])

    monkeypatch.setattr("models.adapt.evaluate._shuffle", note)
    for length, ahead in ((40, 0), (40, 9), (16, 12), (4, 12)):
        accuracy(model, TASK, Trials(length, count=1, ahead=ahead))
        shuffled_accuracy(model, TASK, Trials(length, count=1, ahead=ahead))
    assert seen == [39, 30, 8, 3]


def test_an_answer_that_is_read_in_several_calls_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Passkey(digits=3, alphabet=4, filler=2)
    model = build_small(SmallModel(), task.vocab_size, "window", RING)
    trials = Trials(length=30, count=40)
    whole = accuracy(model, task, trials)
    monkeypatch.setattr("models.adapt.evaluate._CHUNK", 2)
    assert 0 < accuracy(model, task, trials) == whole


@pytest.mark.parametrize(("window", "segment"), [(16, 16), (64, 16)])
def test_the_length_for_a_number_of_folds_has_that_many_between_key_and_question(window: int, segment: int) -> None:
    config = MemoryConfig(window=window, segment=segment, sinks=0)
    for folds in (0, 1, 10):
        length = length_for(config, folds)
        assert folds_behind(config, length, answer=1) == folds
        assert folds_behind(config, length, answer=segment) == folds
        assert folds_behind(config, length, answer=segment + 1) == folds - 1


def test_folds_are_counted_as_the_decoder_makes_them() -> None:
    """By what `Asked.folded` says at the question."""
    config = MemoryConfig(window=8, segment=4, sinks=0)
    model = build_small(SmallModel(), 5, "window", {"window": 8, "segment": 4, "sinks": 0})
    state = model.empty_state()
    length = length_for(config, 2)
    model(torch.zeros(1, length - 1, dtype=torch.int64), state)
    ring = Ring(model.config, config, model.weights.rotary, torch.float32, 0, False)
    (piece,) = ring.plan(torch.zeros(1, 1, dtype=torch.int64), state)
    assert piece.folded == [3 * config.segment], "its own fold and two more"
