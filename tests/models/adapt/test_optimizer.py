"""Which weights learn how fast."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.adapt.optimizer import build_optimizer, warm_up
from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel, build_small

SETTINGS = TrainSettings(first_segments=1, last_segments=1, learning_rate=1e-3, gate_learning_rate=1e-2, warmup=3)
RING = {"window": 8, "segment": 8, "sinks": 0}


def test_gates_learn_faster_than_the_rest_and_do_not_decay() -> None:
    model = build_small(SmallModel(), 10, "feedback", {**RING, "tokens": 4})
    groups = build_optimizer(model, SETTINGS).param_groups
    of = {id(weight): group for group in groups for weight in group["params"]}
    assert len(of) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    names = dict(model.named_parameters())
    gate, initial = of[id(names["memory.gate"])], of[id(names["memory.initial"])]
    assert (gate["lr"], gate["weight_decay"]) == (1e-2, 0)
    assert (initial["lr"], initial["weight_decay"]) == (1e-3, 0.01)
    assert of[id(names["weights.head.norm"])]["weight_decay"] == 0


def test_what_else_a_memory_learns_has_a_rate_of_its_own_if_wanted() -> None:
    model = build_small(SmallModel(), 10, "continuous", {**RING, "basis": 4})
    groups = build_optimizer(model, replace(SETTINGS, memory_learning_rate=0.5)).param_groups
    of = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    rates = {name: of[id(weight)] for name, weight in model.memory.named_parameters()}
    assert rates == {"mean": 0.5, "spread": 0.5, "mean_bias": 1e-2, "spread_bias": 1e-2, "gate": 1e-2}
    assert of[id(model.weights.head.matrix)] == 1e-3


def test_frozen_weights_are_left_out() -> None:
    model = build_small(SmallModel(), 10, "infini", RING)
    model.weights.requires_grad_(False)
    groups = build_optimizer(model, SETTINGS).param_groups
    assert [weight.shape for group in groups for weight in group["params"]] == [(2, 2)]


def test_rates_rise_evenly_and_stay() -> None:
    optimizer = build_optimizer(build_small(SmallModel(), 10, "infini", RING), SETTINGS)
    seen = []
    for step in range(6):
        warm_up(optimizer, SETTINGS, step)
        seen.append([group["lr"] for group in optimizer.param_groups][:2])
    assert [rates[0] for rates in seen] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])
    assert [rates[1] for rates in seen] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
