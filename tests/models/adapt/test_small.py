"""Small models are the same at every start."""

from __future__ import annotations

import pytest
import torch

from models.adapt.small import SmallModel, build_small
from models.errors import ConfigError


def test_the_seed_decides_the_weights_and_all_of_them_can_be_trained() -> None:
    one, same, other = (build_small(SmallModel(seed=seed), 12) for seed in (1, 1, 2))
    for weight, again in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, again)
        assert weight.requires_grad
    assert not torch.equal(one.weights.embedding, other.weights.embedding)


def test_its_memory_is_the_one_that_was_named_with_its_options() -> None:
    model = build_small(SmallModel(), 12, "infini", {"rule": "linear", "gate_init": -1.0})
    assert model.memory.gate.detach().eq(-1).all()  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no memory is called"):
        build_small(SmallModel(), 12, "elephant")


def test_an_option_that_the_memory_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="'window'"):
        build_small(SmallModel(), 12, "window", {"entries": 3})


def test_untrained_logits_are_of_ordinary_size() -> None:
    model = build_small(SmallModel(layers=3), 12)
    logits, _ = model(torch.randint(12, (4, 200)), model.empty_state(4), logits="all")
    assert 0.3 < logits.std() < 3
