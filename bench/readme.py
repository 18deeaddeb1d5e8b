"""Writes the measured tables of README and docs/memory.md: `python -m bench.readme`. A test checks that it was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README, MEMORY = ROOT / "README.md", ROOT / "docs" / "memory.md"
RESULTS = ROOT / "bench" / "results"
_RECALL, _ENGINE = "<!-- measured: python -m bench.readme -->\n", "<!-- measured engine: python -m bench.readme -->\n"
_PRESSES = "<!-- measured presses: python -m bench.readme -->\n"
_PRESS = "kvpress "
_END = "<!-- end of measured -->\n"

_BFLOAT16 = "bfloat16"
_DEPTHS = ("start", "middle", "end")
_TASKS = {
    "passkey": "5-digit passkey in filler, exact",
    "needle": "7-digit needle in a novel, digits right",
    "multikey": "one of four needles in a novel, exact",
    "rewrite": "needle that was said anew, the newest, exact",
    "facts": "fact in plain words in a novel, exact",
    "nll": "the novel itself, nats a token",
}


_WORK = {
    "prefill_512": "reading 512 tokens",
    "prefill_7900": "reading 7,900 tokens",
    "decode_512": "a token after 512",
    "decode_7900": "a token after 7,900",
    "decode_batch8": "a step of 8 sessions after 512",
    "ask_7900": "reading 32 more after 7,900",
}


def measured(results: Path = RESULTS / "recall.json") -> str:
    """What sessions remember, in Markdown."""
    rows: list[Mapping[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    lines = ["| task | tokens | memory | state | trials | result |", "|---|--:|---|--:|--:|--:|"]
    for rows_of_line in _lines([row for row in rows if not _excelled(row, rows)]):
        row = rows_of_line[0]
        found = [_figure(one) for one in rows_of_line]
        cells = (
            _TASKS[row["task"]] + (f"; {', '.join(one['depth'] for one in rows_of_line)}" if _deep(row) else ""),
            f"{row['length']:,}",
            row["mechanism"].replace("_", " ") + _rounded(row.get("weights", _BFLOAT16)),
            f"{row['state_bytes'] / 2**20:.1f} MiB",
            f"{row['trials']:,}" + (" each" if len(rows_of_line) > 1 else ""),
            ", ".join(found),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _excelled(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is of a press, and another press is better there: the README has the best alone."""
    alike = [one for one in rows if all(one[name] == row[name] for name in ("task", "length"))]
    return _is_press(row) and any(_is_press(one) and one["accuracy"] > row["accuracy"] for one in alike)


def _is_press(row: Mapping[str, Any]) -> bool:
    return str(row["mechanism"]).startswith(_PRESS)


def measured_presses(results: Path = RESULTS / "recall.json") -> str:
    """What slots and the presses of kvpress find of the same facts, by length, in Markdown; the best press first."""
    rows: list[Mapping[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    presses = {(row["mechanism"], row["length"]): row for row in rows if _is_press(row)}
    lengths = sorted({length for _, length in presses})
    found = {(row["mechanism"], row["length"]): row for row in rows if row["task"] == "facts"}
    names = sorted({name for name, _ in presses}, key=lambda name: -sum(found[name, at]["accuracy"] for at in lengths))
    lines = ["| | " + " | ".join(f"{length:,} tokens" for length in lengths) + " |", "|---|" + "--:|" * len(lengths)]
    lines += [
        f"| {name.removeprefix(_PRESS)} | " + " | ".join(_figure(found[name, at]) for at in lengths) + " |"
        for name in ("slots", *names)
    ]
    return "\n".join(lines) + "\n"


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows that differ in where something was hidden are one line, from the start of the text to its end."""
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        names = ["mechanism", "task", "length", "trials", "weights", *([] if _deep(row) else ["depth"])]
        lines.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return [sorted(line, key=lambda row: _DEPTHS.index(row["depth"]) if _deep(row) else 0) for line in lines.values()]


def _deep(row: Mapping[str, Any]) -> bool:
    return row["depth"] in _DEPTHS


def _figure(row: Mapping[str, Any]) -> str:
    figure = f"{row['accuracy']:.3f}" if row["task"] == "nll" else f"{row['accuracy']:.0%}"
    if row.get("of_full") is not None and row["mechanism"] != "full_attention":
        figure += f" ({row['of_full']:.0%} of what full attention finds at 4,096)"
    return figure


def _rounded(weights: str) -> str:
    return "" if weights == _BFLOAT16 else f", weights {weights}"


def measured_engine(results: Path = RESULTS / "engine.json") -> str:
    """How fast the engine is beside others, in Markdown."""
    found: Mapping[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    ours, *others = found["engines"]
    lines = ["| | " + " | ".join((ours, *others)) + f" | times {others[0]} |", "|---|" + "--:|" * (len(others) + 2)]
    for name, work in _WORK.items():
        by = found["seconds"][name]
        figures = [f"{by[one]:.2f} s" if by[one] >= 1 else f"{1000 * by[one]:.3g} ms" for one in found["engines"]]
        lines.append("| " + " | ".join((work, *figures, f"{by[others[0]] / by[ours]:.1f}")) + " |")
    return "\n".join(lines) + "\n"


def with_measured(readme: str, recall: str, engine: str) -> str:
    """The README's text with the tables between their marks."""
    return _between(_between(readme, _RECALL, recall), _ENGINE, engine)


def with_presses(memory: str, presses: str) -> str:
    """The text of docs/memory.md with the table between its marks."""
    return _between(memory, _PRESSES, presses)


def _between(text: str, begin: str, table: str) -> str:
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(_END)
    return before + begin + table + _END + after


def main() -> None:
    """Entry point."""
    README.write_text(
        with_measured(README.read_text(encoding="utf-8"), measured(), measured_engine()), encoding="utf-8"
    )
    MEMORY.write_text(with_presses(MEMORY.read_text(encoding="utf-8"), measured_presses()), encoding="utf-8")


if __name__ == "__main__":
    main()
