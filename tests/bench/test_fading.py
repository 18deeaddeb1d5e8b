"""The benchmark of fading writes a row for each length."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench.fading import measure
from bench.recall import offer_reader
from models.evaluate.results import Results
from models.probes import prose


def test_every_length_has_a_row(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fading.json"
    reader = offer_reader(str(tiny_model), "infini")
    measure(reader, prose(random.Random(0), 20_000), [800, 1_000], 2, Results(out, lambda _: None))
    rows = json.loads(out.read_text(encoding="utf-8"))
    what = [(row["mechanism"], row["task"], row["length"], row["depth"], row["trials"]) for row in rows]
    assert what == [("infini delta", "passkey", length, "in a book", 2) for length in (800, 1_000)]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
