"""Plain text of a model's own tokens, and several tasks in turn."""

from __future__ import annotations

import pytest
import torch

from models.adapt.tasks.base import IGNORED, Batch
from models.adapt.tasks.copy import Copy
from models.adapt.tasks.mixture import Mixture
from models.adapt.tasks.passages import Passages
from models.adapt.tasks.passkey import Passkey
from models.errors import ConfigError

TEXT = torch.arange(1000) % 50


def draw(task: Passages | Mixture, seed: int = 0) -> Batch:
    return task.batch(torch.Generator().manual_seed(seed), 4, 100)


def test_passages_ask_for_a_share_of_the_next_tokens() -> None:
    batch = draw(Passages(TEXT, 50, share=0.25, imitate=0.5))
    assert batch.marked is not None
    assert not batch.marked.any()
    assert batch.imitate == 0.5
    assert not batch.graded
    assert 60 <= int(batch.asked.sum()) <= 140
    following = (batch.tokens + 1) % 50
    assert torch.equal(batch.targets[batch.asked], following[batch.asked])


def test_passages_come_from_anywhere() -> None:
    task = Passages(TEXT, 50)
    begins = {int(one) for seed in range(30) for one in draw(task, seed).tokens[:, 0]}
    assert len(begins) > 30
    with pytest.raises(ConfigError, match="give a longer one"):
        task.batch(torch.Generator(), 1, 1000)


def test_a_mixture_takes_turns_by_weight() -> None:
    often, seldom = Passages(TEXT, 50, imitate=1.0), Passages(TEXT, 50, imitate=2.0)
    mixture = Mixture((often, seldom), (3.0, 1.0))
    turns = [draw(mixture, seed).imitate for seed in range(200)]
    assert 120 <= turns.count(1.0) <= 180
    assert turns.count(1.0) + turns.count(2.0) == 200


def test_a_mixture_needs_one_vocabulary_and_weights() -> None:
    with pytest.raises(ConfigError, match="one vocabulary"):
        Mixture((Passkey(), Copy()), (1.0, 1.0))
    for weights in ((), (1.0,), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="weight above 0"):
            Mixture((Passkey(), Passkey()), weights)


def test_nothing_is_asked_of_the_places_that_are_left_out() -> None:
    batch = draw(Passages(TEXT, 50, share=0.1))
    assert torch.equal(batch.targets == IGNORED, ~batch.asked)
    assert bool(batch.asked[:, -1].all())
