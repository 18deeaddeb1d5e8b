"""Figures are means of what was measured, where it was measured."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from models.evaluate.evaluation import PLACES, SHORT, Evaluation, between, bins
from models.evaluate.reading import Reader, full_attention_reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose
from models.weights.checkpoint import Checkpoint


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


def test_how_far_a_short_text_is_from_the_base_model(own: Reader, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """On its own the sum is over the whole vocabulary, and the base model is as far from itself as it can be: not at all."""
    trials = Trials(own.model.tokenizer, prose(random.Random(2), 20_000))
    base = full_attention_reader(checkpoint, SHORT)
    results = Results(tmp_path / "results.json", lambda _: None)
    Evaluation(trials, results).divergence(own, base)
    found = {(row.task, row.mechanism): row for row in results.rows}
    assert {row.depth for row in results.rows} == {"short"}
    assert {row.trials for row in results.rows} == {PLACES * SHORT}
    last, apart, nats = len(trials.book) - SHORT - 1, 0.0, 0.0
    for place in range(PLACES):
        begin = round((2 * place + 1) * last / (2 * PLACES))
        tokens = trials.book[begin : begin + SHORT + 1]
        ours, theirs = own.log_probabilities(tokens).double(), base.log_probabilities(tokens).double()
        apart += float((theirs.exp() * (theirs - ours)).sum())
        nats += float(own.losses(tokens).sum())
    assert apart / PLACES / SHORT > 0.01  # its adapter has changed every layer
    assert found["kl", "infini linear"].accuracy == pytest.approx(apart / PLACES / SHORT, abs=1e-4)
    assert found["nll", "infini linear"].accuracy == pytest.approx(nats / PLACES / SHORT, abs=1e-4)
    assert found["nll", "full_attention"].accuracy != found["nll", "infini linear"].accuracy
    Evaluation(trials, results).divergence(base, base)
    assert results.rows[-3].accuracy == 0


def test_passkeys_have_a_row_for_each_depth(own: Reader, tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", lambda _: None)
    Evaluation(Trials(own.model.tokenizer, "A book."), results).passkey_by_depth(own, 1_024, 2)
    assert [(row.depth, row.trials, row.mechanism) for row in results.rows] == [
        ("start", 2, "infini linear"),
        ("middle", 2, "infini linear"),
        ("end", 2, "infini linear"),
    ]
    assert {row.state_bytes for row in results.rows} == {own.empty().nbytes}
