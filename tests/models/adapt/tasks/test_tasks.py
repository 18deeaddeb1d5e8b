"""What every task promises."""

from __future__ import annotations

import pytest
import torch

from models.adapt.tasks import TASKS
from models.adapt.tasks.base import IGNORED, Batch, Task
from models.errors import ConfigError

EVERY = pytest.mark.parametrize("task", [kind() for kind in TASKS.values()], ids=list(TASKS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@EVERY
def test_the_same_generator_gives_the_same_batch_and_another_seed_another_one(task: Task) -> None:
    length = task.shortest + 40
    one, same, other = (task.batch(generator(seed), 4, length) for seed in (3, 3, 4))
    assert torch.equal(one.tokens, same.tokens)
    assert torch.equal(one.targets, same.targets)
    assert not torch.equal(one.tokens, other.tokens)


@EVERY
@pytest.mark.parametrize("more", [0, 1, 2, 63])
def test_tokens_and_targets_lie_in_the_vocabulary_and_every_row_is_asked_as_often(task: Task, more: int) -> None:
    batch = task.batch(generator(), 6, task.shortest + more)
    assert batch.tokens.shape == batch.targets.shape == (6, task.shortest + more)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.min() >= 0
    assert batch.tokens.max() < task.vocab_size
    asked = batch.targets[batch.asked]
    assert asked.min() >= 0
    assert asked.max() < task.vocab_size
    assert len(set(batch.asked.sum(dim=1).tolist())) == 1
    assert not batch.asked[:, : batch.question].any()
    assert batch.asked[:, batch.question].any()
    assert IGNORED < 0


@EVERY
def test_a_sequence_that_is_too_short_is_refused_with_the_least_length(task: Task) -> None:
    with pytest.raises(ConfigError, match=f"at least {task.shortest} tokens, not {task.shortest - 1}"):
        task.batch(generator(), 1, task.shortest - 1)


@EVERY
def test_chance_is_a_probability(task: Task) -> None:
    assert 0 < task.chance < 1


def test_a_batch_goes_to_a_device_whole() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(tokens, tokens, 0.5, graded=False, marked=tokens > 0).to("meta")
    assert batch.marked is not None
    assert {part.device.type for part in (batch.tokens, batch.targets, batch.marked)} == {"meta"}
    assert (batch.imitate, batch.graded) == (0.5, False)
    assert Batch(tokens, tokens).to("meta").marked is None
