"""Rows that outlive the run that measured them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from models.errors import ModelsError
from models.evaluate.results import Result, Results

ROW = Result("slots", "passkey", 2_048, "start", 3, 0.6667, 16)


def test_a_row_is_in_the_file_as_soon_as_it_was_measured_and_said(tmp_path: Path) -> None:
    out, said = tmp_path / "new" / "results.json", list[str]()
    results = Results(out, said.append)
    results.add(ROW)
    wanted = ["mechanism", "task", "length", "depth", "trials", "accuracy", "state_bytes"]
    (row,) = json.loads(out.read_text(encoding="utf-8"))
    assert list(row) == wanted
    assert row == asdict(ROW)
    assert "passkey" in said[0]
    assert "0.6667" in said[0]
    assert list(out.parent.iterdir()) == [out]


def test_other_rows_stay_and_what_was_measured_again_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    first = Results(out, print)
    for row in (replace(ROW, task="nll"), ROW, replace(ROW, mechanism="window 384")):
        first.add(row)
    second = Results(out, print)
    second.add(replace(ROW, accuracy=1.0))
    second.add(replace(ROW, task="multivalue"))
    assert second.rows == [replace(ROW, accuracy=1.0), replace(ROW, task="multivalue")]
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert rows == second.written
    assert [(row["mechanism"], row["task"], row["accuracy"]) for row in rows] == [
        ("window 384", "passkey", 0.6667),
        ("slots", "passkey", 1.0),
        ("slots", "multivalue", 0.6667),
        ("slots", "nll", 0.6667),
    ]


@pytest.mark.parametrize(
    "text", ["", "7", "[1]", '{"rows": []}', '[{"task": "nll"}]', json.dumps([asdict(ROW) | {"task": "?"}])]
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    out = tmp_path / "results.json"
    out.write_text(text, encoding="utf-8")
    with pytest.raises(ModelsError, match=r"results\.json has no rows of results"):
        Results(out, print)
    assert out.read_text(encoding="utf-8") == text
