"""Figures are means of what was measured, where it was measured."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from models.evaluate.evaluation import Evaluation, between, bins
from models.evaluate.reading import Reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose


def test_bins_cover_every_position_once_and_each_is_twice_the_one_before() -> None:
    assert list(bins(3_000)) == [(0, 512), (512, 1_024), (1_024, 2_048), (2_048, 3_000)]
    assert list(bins(1_024)) == [(0, 512), (512, 1_024)]
    losses = [float(position) for position in range(1, 3_000)]  # the first token has none
    parts = [between(losses, begin, end) for begin, end in bins(3_000)]
    assert [one for part in parts for one in part] == losses
    assert parts[1][0] == 512.0


def test_nats_are_told_of_every_length_and_by_position_of_the_longest(own: Reader, tmp_path: Path) -> None:
    trials = Trials(own.model.tokenizer, prose(random.Random(2), 12_000))
    results = Results(tmp_path / "results.json", lambda _: None)
    Evaluation(trials, results).likelihood(own, [1_024, 1_300])
    rows = {(row.length, row.depth): row for row in results.rows}
    assert list(rows) == [
        (1_024, "whole"),
        (1_300, "whole"),
        (1_300, "0-512"),
        (1_300, "512-1024"),
        (1_300, "1024-1300"),
    ]
    assert [row.trials for row in rows.values()] == [1_023, 1_299, 511, 512, 276]
    losses = own.losses(trials.book[:1_300])
    assert rows[1_300, "512-1024"].accuracy == pytest.approx(float(losses[511:1_023].mean()), abs=1e-3)
    assert rows[1_024, "whole"].accuracy == pytest.approx(float(losses[:1_023].mean()), abs=1e-3)


def test_passkeys_have_a_row_for_each_depth(own: Reader, tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", lambda _: None)
    Evaluation(Trials(own.model.tokenizer, "A book."), results).passkey_by_depth(own, 1_024, 2)
    assert [(row.depth, row.trials, row.mechanism) for row in results.rows] == [
        ("start", 2, "infini linear"),
        ("middle", 2, "infini linear"),
        ("end", 2, "infini linear"),
    ]
    assert {row.state_bytes for row in results.rows} == {own.empty().nbytes}
