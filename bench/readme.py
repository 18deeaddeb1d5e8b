"""Writes the measured table of the README from bench/results: `python -m bench.readme`. A test checks that it was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results" / "recall.json"
BEGIN, END = "<!-- measured: python -m bench.readme -->\n", "<!-- end of measured -->\n"

_TASKS = {
    "passkey": "5-digit passkey in filler, exact",
    "needle": "7-digit needle in a novel, digits right",
    "multikey": "one of four needles in a novel, exact",
    "rewrite": "needle that was said anew, the newest, exact",
    "facts": "fact in plain words in a novel, exact",
    "nll": "the novel itself, nats a token",
}


def measured(results: Path = RESULTS) -> str:
    """The table in Markdown."""
    rows: list[Mapping[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    lines = ["| task | tokens | memory | state | trials | result |", "|---|--:|---|--:|--:|--:|"]
    for row in rows:
        figure = f"{row['accuracy']:.3f}" if row["task"] == "nll" else f"{row['accuracy']:.0%}"
        if row.get("of_full") is not None and row["mechanism"] != "full_attention":
            figure += f" ({row['of_full']:.0%} of what full attention finds at 4,096)"
        cells = (
            _TASKS[row["task"]] + (f", at the {row['depth']}" if row["depth"] in ("start", "middle", "end") else ""),
            f"{row['length']:,}",
            row["mechanism"].replace("_", " "),
            f"{row['state_bytes'] / 2**20:.1f} MiB",
            f"{row['trials']:,}",
            figure,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_measured(readme: str, table: str) -> str:
    """The README's text with the table between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table + END + after


def main() -> None:
    """Entry point."""
    README.write_text(with_measured(README.read_text(encoding="utf-8"), measured()), encoding="utf-8")


if __name__ == "__main__":
    main()
