"""Two figures: what is kept of a session, and how long its first token takes, by tokens of history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """engine-memory.png and engine-first-token.png."""
    import matplotlib  # only for the figures: measuring needs no display library

    matplotlib.use("Agg")
    from matplotlib import pyplot

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    for name, key, scale, label in (
        ("engine-memory", "bytes", 2**-20, "MiB kept of a session"),
        ("engine-first-token", "ttft", 1000, "ms to the first token of a 32-token question"),
    ):
        figure, panel = pyplot.subplots(figsize=(6, 4))
        for order, engine in enumerate(engines):
            own = sorted((row["tokens"], row[key] * scale) for row in rows if row["engine"] == engine)
            panel.plot(
                *zip(*own, strict=True), marker="o", linewidth=2 * (len(engines) - order), label=engine
            )  # none hides another
        panel.set(xscale="log", xlabel="tokens of history", ylabel=label, ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=150)
        pyplot.close(figure)
