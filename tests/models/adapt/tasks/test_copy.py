"""The span is asked for as it was."""

from __future__ import annotations

import pytest
import torch

from models.adapt.tasks.copy import Copy


@pytest.mark.parametrize("anywhere", [False, True])
def test_the_span_behind_the_start_is_asked_for_in_order(anywhere: bool) -> None:
    task = Copy(span=6, symbols=12, anywhere=anywhere)
    batch = task.batch(torch.Generator().manual_seed(2), 40, 45)
    begins = set()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        begin = tokens.index(task.vocab_size - 2)
        begins.add(begin)
        span = tokens[begin + 1 : begin + 7]
        assert len(set(span)) == 6
        assert tokens[39:] == [task.vocab_size - 1, *span[:5]]
        assert targets[39:] == span
    assert begins == {0} if not anywhere else len(begins) > 10
