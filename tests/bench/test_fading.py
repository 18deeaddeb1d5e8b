"""The benchmark of fading writes a row for each length."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench.fading import measure
from bench.recall import Recall, offer_reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose


def test_every_length_has_a_row(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fading.json"
    reader = offer_reader(str(tiny_model), "infini", "int8")
    trials = Trials(reader.model.tokenizer, prose(random.Random(0), 20_000))
    recall = Recall(trials, Results(out, lambda _: None))
    recall.weights[reader.name] = "int8"
    measure(recall, reader, [1_000, 800], 2)
    rows = json.loads(out.read_text(encoding="utf-8"))
    what = [(row["mechanism"], row["length"], row["depth"], row["trials"], row["weights"]) for row in rows]
    assert what == [("infini delta", length, "in a book", 2, "int8") for length in (800, 1_000)]
