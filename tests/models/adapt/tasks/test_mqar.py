"""Every key returns once, and its value is asked for where it does."""

from __future__ import annotations

import pytest
import torch

from models.adapt.tasks.mqar import Mqar
from models.errors import ConfigError


@pytest.mark.parametrize("noise", [False, True])
def test_every_key_is_asked_for_once_with_the_value_that_stood_behind_it(noise: bool) -> None:
    task = Mqar(pairs=5, symbols=40, noise=noise, gap=7)
    batch = task.batch(torch.Generator().manual_seed(1), 30, 64)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        pairs = dict(zip(tokens[0:10:2], tokens[1:10:2], strict=True))
        assert len(pairs) == 5
        assert all(0 < key < 20 <= value for key, value in pairs.items())
        asked = {tokens[place]: target for place, target in enumerate(targets) if target >= 0}
        assert asked == pairs
        assert min(place for place, target in enumerate(targets) if target >= 0) >= 17


def test_without_noise_all_else_is_blank() -> None:
    batch = Mqar(pairs=3).batch(torch.Generator().manual_seed(1), 4, 50)
    assert (batch.tokens != 0).sum().item() == 4 * (6 + 3)


def test_with_the_papers_power_questions_are_near_and_with_power_one_they_are_spread() -> None:
    near, even = (Mqar(pairs=4, power=power).batch(torch.Generator().manual_seed(1), 200, 208) for power in (0.01, 1))
    place = torch.arange(208.0).expand(200, -1)
    assert place[near.asked].mean() < 50
    assert 95 < place[even.asked].mean() < 121


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"pairs": 0}, "pairs"),
        ({"pairs": 8, "symbols": 17}, "symbols"),
        ({"power": 0.0}, "power"),
        ({"gap": -1}, "gap"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=f"{word} of mqar"):
        Mqar(**wrong)  # type: ignore[arg-type]
