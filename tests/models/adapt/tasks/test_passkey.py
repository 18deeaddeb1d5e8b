"""The key stands behind its marker, where it was meant to, and is asked for at the end."""

from __future__ import annotations

import pytest
import torch

from models.adapt.tasks.passkey import Passkey
from models.errors import ConfigError

SEED = 5


def test_what_is_asked_is_what_stands_behind_the_marker() -> None:
    task = Passkey(digits=3)
    marker, question = task.vocab_size - 2, task.vocab_size - 1
    batch = task.batch(torch.Generator().manual_seed(SEED), 50, 40)
    begins = []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        begin = tokens.index(marker)
        begins.append(begin)
        key = tokens[begin + 1 : begin + 4]
        assert len(set(key)) == 3
        assert tokens[37:] == [question, *key[:2]]
        assert targets[37:] == key
        others = tokens[:begin] + tokens[begin + 4 : 37]
        assert all(task.alphabet <= token < marker for token in others)
    assert min(begins) == 0
    assert max(begins) == 33, "directly before the question"


@pytest.mark.parametrize(("depth", "begin"), [(0.0, 0), (0.5, 15), (1.0, 30)])
def test_depth_says_where_the_key_lies(depth: float, begin: int) -> None:
    task = Passkey(digits=2, depth=depth)
    batch = task.batch(torch.Generator().manual_seed(SEED), 8, 35)
    assert (batch.tokens[:, begin] == task.vocab_size - 2).all()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"digits": 0}, "digits"),
        ({"digits": 5, "alphabet": 4}, "alphabet"),
        ({"filler": 0}, "filler"),
        ({"depth": 1.5}, "depth"),
    ],
)
def test_settings_that_make_no_key_are_refused(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=f"{word} of passkey"):
        Passkey(**wrong)  # type: ignore[arg-type]
