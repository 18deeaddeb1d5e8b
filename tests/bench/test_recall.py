"""The benchmark of recall measures what it is told to, and goes on where it was stopped."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from bench.recall import FACTS, LIKE, QUICK, WHOLE, Figures, Measuring, Recall
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint

WANTED = (
    Figures("window", "passkey", 400, 2),
    Figures("infini", "passkey", 400, 1),
    Figures("window", "nll", 2_100, 1),
)


def measured(
    model: Path, out: Path, figures: tuple[Figures, ...], *, missing: bool, weights: str = "bfloat16"
) -> list[tuple[str, str, str, int]]:
    """What one run writes down: mechanism, task, depth, trials."""
    checkpoint = load_checkpoint(str(model), dtype=torch.bfloat16)
    trials = Trials(Tokenizer.of(checkpoint.tokenizer), prose(random.Random(0), 20_000))
    recall = Recall(trials, Results(out, lambda _: None))
    Measuring(recall, checkpoint, str(model), missing=missing, weights=weights).measure(figures)
    return [(row.mechanism, row.task, row.depth, row.trials) for row in recall.results.rows]


def test_a_run_that_was_stopped_is_gone_on_with(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "recall.json"
    first = measured(tiny_model, out, WANTED[:2], missing=True)
    depths = [("infini delta", "passkey", depth, 1) for depth in ("start", "middle", "end")]
    assert first == [("window", "passkey", "spread", 2), *depths]
    assert measured(tiny_model, out, WANTED, missing=True) == [("window", "nll", "", 51)]
    assert measured(tiny_model, out, WANTED, missing=True) == []
    more = (Figures("window", "passkey", 400, 3),)
    assert measured(tiny_model, out, more, missing=True) == [("window", "passkey", "spread", 3)]
    assert measured(tiny_model, out, more, missing=False) == [("window", "passkey", "spread", 3)]
    assert len(json.loads(out.read_text(encoding="utf-8"))) == 5


def test_the_window_of_a_memory_is_measured_alone(tiny_model: Path, tmp_path: Path) -> None:
    narrow = json.dumps({"memory": "infini", "options": {"window": 64, "segment": 32}})
    wanted = (Figures(f"{LIKE}{narrow}", "nll", 2_100, 1), Figures(narrow, "nll", 2_100, 1))
    rows = measured(tiny_model, tmp_path / "recall.json", wanted, missing=False)
    assert rows == [("window 64 by 32", "nll", "", 51), ("infini delta", "nll", "", 51)]


def test_an_offer_with_a_name_is_measured_under_it(tiny_model: Path, tmp_path: Path) -> None:
    named = json.dumps({"memory": "infini", "options": {"rule": "linear"}, "name": "infini as in the paper"})
    rows = measured(tiny_model, tmp_path / "recall.json", (Figures(named, "nll", 2_100, 1),), missing=False)
    assert rows == [("infini as in the paper", "nll", "", 51)]


def test_what_the_book_is_too_short_for_is_left_out_and_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure must not name a length that was never read."""
    long = (Figures("window", "nll", 10**6, 1), Figures("window", "needle", 10**6, 5))
    assert measured(tiny_model, tmp_path / "recall.json", long, missing=False) == []
    assert "needle at 1,000,000 is left out: the book has" in " ".join(capsys.readouterr().err.split())


def test_what_was_rounded_is_said_of_memories_and_not_of_controls(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "recall.json"
    measured(tiny_model, out, WANTED[:2], missing=False, weights="int8")
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert {(row["mechanism"], row["weights"]) for row in rows} == {("window", "bfloat16"), ("infini delta", "int8")}


def test_facts_are_measured_in_whole_rounds() -> None:
    """Each wording as often as every other."""
    for one in (*QUICK, *WHOLE):
        assert one.task != "facts" or one.trials % FACTS == 0
