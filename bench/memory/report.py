"""The results as a table in docs/memory.md and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.memory.variants import VARIANTS

DOCS = Path(__file__).parent.parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- measured: make bench-memory -->\n", "<!-- end of measured -->\n"


def with_table(results: Path) -> str:
    """docs/memory.md with the table of these results between its marks."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(json.loads(results.read_text(encoding="utf-8"))) + END + after


def write_docs(text: str) -> None:
    """Put the text in place."""
    DOCS.write_text(text, encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison in Markdown, in the order of the variants."""
    lengths = sorted({int(length) for row in rows for length in row["passkey"]})
    columns = [f"passkey {length:,}" for length in lengths] + [f"needle {length:,}" for length in lengths]
    heads = ["mechanism", "memory", "state", "fold ms", "read µs", "NLL", "− window", *columns, "its paper"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 2) + "|---|"]
    for row, published in _ordered(rows):
        found = [_share(row["passkey"], length) for length in lengths] + [
            _share(row["needle"], length) for length in lengths
        ]
        cells = [
            f"`{row['mechanism']}` {row['variant']}".strip(),
            f"{row['memory_bytes'] / 2**20:.2f} MiB",
            f"{row['state_bytes'] / 2**20:.1f} MiB",
            f"{row['fold_ms']:.1f}",
            f"{row['read_us_per_token']:.0f}",
            f"{row['nll']:.3f}",
            f"{row['nll'] - row['window_nll']:+.3f}",
            *found,
            published,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: Path, out: Path) -> None:
    """Passkeys and needles by length, a line for each mechanism that works untrained; memory's size in the legend."""
    import matplotlib  # only for the figure: measuring needs no display library

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads(results.read_text(encoding="utf-8"))
    closed = {(one.mechanism, one.variant) for one in VARIANTS if one.closed}
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for task, panel in zip(("passkey", "needle"), panels, strict=True):
        for row, _ in _ordered(rows):
            if (row["mechanism"], row["variant"]) in closed:
                continue
            lengths = sorted(int(length) for length in row[task])
            name = f"{row['mechanism']} {row['variant']}".strip()
            panel.plot(
                lengths,
                [row[task][str(length)] for length in lengths],
                marker="o",
                label=f"{name} ({row['memory_bytes'] / 2**20:.1f} MiB)",
            )
        panel.set(xscale="log", xlabel="tokens", title=task)
        ticks = sorted({int(length) for row in rows for length in row[task]})
        panel.set_xticks(ticks, [f"{length:,}" for length in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("found again")
    panels[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Rows with what their papers report, in the order of the variants."""
    by_name = {(row["mechanism"], row["variant"]): row for row in rows}
    return [
        (by_name[one.mechanism, one.variant], one.published)
        for one in VARIANTS
        if (one.mechanism, one.variant) in by_name
    ]


def _share(found: Mapping[str, float], length: int) -> str:
    return f"{found[str(length)]:.0%}" if str(length) in found else "–"
