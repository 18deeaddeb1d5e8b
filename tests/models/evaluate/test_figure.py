"""The picture has every row in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from models.errors import ModelsError
from models.evaluate.figure import check_drawing, draw


def row(
    task: str, length: int, depth: str, accuracy: float, mechanism: str = "slots", trials: int = 1
) -> dict[str, Any]:
    return {
        "mechanism": mechanism,
        "task": task,
        "length": length,
        "depth": depth,
        "trials": trials,
        "accuracy": accuracy,
    }


ROWS = [
    row("passkey", 2_048, "start", 1.0, trials=3),
    row("passkey", 2_048, "end", 0.0),
    row("passkey", 1_024, "end", 1.0),
    row("passkey", 1_024, "end", 0.5, mechanism="window 384"),
    row("facts", 1_024, "spread", 0.5),
    row("nll", 2_048, "whole", 3.0),
    row("nll", 1_024, "0-512", 9.0),
    row("nll", 2_048, "512-1024", 3.1),
    row("nll", 2_048, "0-512", 3.2),
]


def points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def test_a_panel_for_each_task_has_a_line_for_each_mechanism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_drawing()
    drawn: list[Figure] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    draw(ROWS, tmp_path / "new" / "figure")
    assert (tmp_path / "new" / "figure").read_bytes().startswith(b"\x89PNG")
    monkeypatch.undo()
    (figure,) = drawn
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_lines()}
    assert list(panels) == ["passkey", "facts", "nats a token by position"]
    lines = {line.get_label(): points(line) for line in panels["passkey"].get_lines()}
    assert lines == {"slots": [(1_024, 1.0), (2_048, 0.75)], "window 384": [(1_024, 0.5)]}
    (nats,) = panels["nats a token by position"].get_lines()
    assert points(nats) == [(512, 3.2), (1_024, 3.1)]
    pyplot.close(figure)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModelsError, match=r"pip install 'palimpsest-server\[bench\]'"):
        check_drawing()
