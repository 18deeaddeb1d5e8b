"""The figures as a picture: what is found by length, a panel for each task, and nats by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelsError
from models.evaluate.results import IN_NATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS = 4
"""Panels in a row."""
Row = Mapping[str, Any]


def check_drawing() -> None:
    """Raises `ModelsError` when nothing is installed that could draw."""
    try:
        import matplotlib  # only for the figure: measuring needs no display library
    except ImportError:
        raise ModelsError(
            "--figure needs matplotlib; install it with: pip install 'palimpsest-server[bench]'"
        ) from None
    matplotlib.use("Agg")


def draw(rows: Sequence[Row], out: Path) -> None:
    """Write a PNG of these rows; `check_drawing` comes first."""
    from matplotlib import pyplot

    asked = list(dict.fromkeys(row["task"] for row in rows if row["task"] not in IN_NATS))
    titles = [*asked, *(["nll"] if any(row["task"] == "nll" for row in rows) else [])]
    down = -(-len(titles) // _ACROSS)
    across = min(len(titles), _ACROSS)
    figure, panels = pyplot.subplots(down, across, figsize=(4 * across, 3.4 * down), squeeze=False)
    mechanisms = list(dict.fromkeys(row["mechanism"] for row in rows))
    for panel, title in zip(panels.flat, titles, strict=False):
        chosen = [row for row in rows if row["task"] == title]
        lines = {name: _nats(chosen, name) if title == "nll" else _found(chosen, name) for name in mechanisms}
        for place, (name, line) in enumerate(lines.items()):
            if line:  # ever smaller marks: where lines lie on one another, all are seen
                size = max(3, 11 - 2 * place)
                panel.plot(*zip(*line, strict=True), marker="o", markersize=size, color=f"C{place}", label=name)
        _label(panel, title, sorted({place for line in lines.values() for place, _ in line}))
    for panel in panels.flat[len(titles) :]:
        panel.set_axis_off()
    shown = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    figure.tight_layout()
    figure.legend(shown.values(), shown.keys(), loc="upper center", ncols=3, bbox_to_anchor=(0.5, 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _found(rows: Sequence[Row], mechanism: str) -> list[tuple[int, float]]:
    """(length, share that was found), over all depths."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        if row["mechanism"] == mechanism:
            by_length.setdefault(row["length"], []).append(row)
    return [
        (length, sum(row["accuracy"] * row["trials"] for row in same) / sum(row["trials"] for row in same))
        for length, same in sorted(by_length.items())
    ]


def _nats(rows: Sequence[Row], mechanism: str) -> list[tuple[int, float]]:
    """(last position of a bin, nats a token in it), of the longest text."""
    binned = [row for row in rows if row["mechanism"] == mechanism and "-" in row["depth"]]
    longest = max((row["length"] for row in binned), default=0)
    return sorted((int(row["depth"].split("-")[1]), row["accuracy"]) for row in binned if row["length"] == longest)


def _label(panel: Axes, title: str, places: Sequence[int]) -> None:
    panel.set(xscale="log", title="nats a token by position" if title == "nll" else title)
    panel.set_xlabel("position" if title == "nll" else "tokens")
    if title != "nll":
        panel.set_ylim(-0.05, 1.05)
    panel.set_xticks(places, [f"{place:,}" for place in places], rotation=30)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
