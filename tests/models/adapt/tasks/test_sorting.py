"""Symbols by their count, from sequences whose distribution drifts."""

from __future__ import annotations

from collections import Counter

import torch

from models.adapt.tasks.sorting import Sorting


def test_the_answer_is_the_symbols_by_count_and_the_earlier_first_among_equals() -> None:
    task = Sorting(symbols=6)
    batch = task.batch(torch.Generator().manual_seed(4), 60, 30)
    ties = 0
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        counts = Counter(tokens[:24])
        ties += len(set(counts.values())) < len(counts)
        wanted = [symbol for symbol, _ in counts.most_common()]  # stable: in order of first appearance
        seen = len(wanted)
        assert targets[24 : 24 + seen] == wanted
        assert sorted(targets[24:]) == list(range(6))
        assert tokens[24:] == [6, *targets[24:-1]]
    assert ties > 10


def test_the_distribution_drifts_from_one_to_another() -> None:
    task = Sorting()
    tokens = task.batch(torch.Generator().manual_seed(5), 40, 4096).tokens[:, :4000]

    def share(part: torch.Tensor) -> torch.Tensor:
        return torch.stack([(part == symbol).float().mean(dim=1) for symbol in range(20)], dim=1)

    first, middle, last = share(tokens[:, :400]), share(tokens[:, 1800:2200]), share(tokens[:, 3600:])
    assert (first - last).abs().mean() > 0.015
    assert (middle - (first + last) / 2).abs().mean() < 0.012, "half-way it is the mean of both"
    assert first.max() < 9 / 28 + 0.1, "no weight is more than nine times another"


def test_chance_is_that_of_symbols_not_yet_named() -> None:
    assert abs(Sorting(symbols=2).chance - 0.75) < 1e-9
