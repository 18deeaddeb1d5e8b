from __future__ import annotations

import json
from pathlib import Path
from random import Random

from bench import precision
from models.probes import prose


def test_every_precision_is_compared_with_float32(tiny_model: Path, tmp_path: Path) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "results" / "precision.json"
    book.write_text(prose(Random(1), 3_000))
    precision.main(
        ["--book", str(book), "--model", str(tiny_model), "--memory", "window", "--tokens", "300", "--out", str(out)]
    )
    costs = {cost["precision"]: cost for cost in json.loads(out.read_text())}
    assert list(costs) == ["float32", "bfloat16", "int8", "int4"]
    assert costs["float32"]["kl"] == 0
    assert costs["float32"]["same_first_choice"] == 1
    assert 0 < costs["bfloat16"]["kl"] < costs["int4"]["kl"]
    assert all(cost["tokens"] == 300 for cost in costs.values())
