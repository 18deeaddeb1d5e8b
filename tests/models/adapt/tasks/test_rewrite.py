"""The value stored last is the one that is asked for."""

from __future__ import annotations

import torch

from models.adapt.tasks.rewrite import Rewrite


def test_each_key_is_asked_for_once_and_its_newest_value_is_the_answer() -> None:
    task = Rewrite(keys=3, values=8, times=3, gap=10)
    batch = task.batch(torch.Generator().manual_seed(3), 40, 70)
    blank = task.vocab_size - 1
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        stored: dict[int, list[int]] = {}
        for key, value in zip(tokens[0:64:2], tokens[1:64:2], strict=True):
            if key != blank:
                stored.setdefault(key, []).append(value)
        assert sorted(stored) == [0, 1, 2]
        assert all(len(set(values)) == 3 for values in stored.values()), "a key's values differ"
        assert tokens[54:64] == [blank] * 10
        asked = {tokens[place]: target for place, target in enumerate(targets) if target >= 0}
        assert asked == {key: values[-1] for key, values in stored.items()}
        assert all(tokens[place + 1] == targets[place] for place in (64, 66, 68))


def test_the_order_of_questions_does_not_follow_from_the_order_of_pairs() -> None:
    batch = Rewrite(keys=2, times=1).batch(torch.Generator().manual_seed(3), 60, 12)
    last = batch.tokens[:, -2]
    newest = [max(place for place in range(8) if row[place] in (0, 1)) for row in batch.tokens.tolist()]
    same = sum(
        row[place] == asked for row, place, asked in zip(batch.tokens.tolist(), newest, last.tolist(), strict=True)
    )
    assert 10 < same < 50
