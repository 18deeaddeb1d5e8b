"""The results as a table, on the screen and in docs/memory.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.table import Table

from bench.learn.course import Course
from bench.learn.courses import COMPRESSED, REACH
from bench.learn.examine import Row

DOCS = Path(__file__).parent.parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- measured: make bench-learn -->\n", "<!-- end of learned -->\n"
REACHED = 0.9
"""The accuracy at which a distance counts as reached."""
HEADS = (
    "task",
    "memory",
    "accuracy by tokens (folds behind)",
    "memory off",
    "shuffled",
    "window only",
    "chance",
    "state",
    "steps",
    "CPU s",
)


def with_table(rows: Sequence[Row]) -> str:
    """docs/memory.md with the table of these results between its marks, which are put at the end if missing."""
    text = DOCS.read_text(encoding="utf-8")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}{END}"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(rows) + compared_reach(rows) + END + after


def write_docs(text: str) -> None:
    """Put the text in place."""
    DOCS.write_text(text, encoding="utf-8")


def table(rows: Iterable[Row]) -> str:
    """In Markdown: a line for each course."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * 3 + "|--:" * (len(HEADS) - 3) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _lines(rows, code="`")]
    return "\n".join(lines) + "\n"


def screen(rows: Iterable[Row]) -> Table:
    """The same for a terminal."""
    shown = Table(*HEADS)
    for cells in _lines(rows):
        shown.add_row(*cells)
    return shown


def compared_reach(rows: Sequence[Row]) -> str:
    """How far `compressive` reaches beside `transformer_xl` with as many bytes; nothing before both were examined."""
    cached, compressed = reach(rows, REACH), reach(rows, COMPRESSED)
    base, rate = COMPRESSED.ring.window, COMPRESSED.options["rate"]
    if cached <= base or compressed <= base:
        return ""
    return (
        f"\nReach with the same bytes, in tokens before the question's segment at which at least {REACHED:.0%} is named:"
        f" `transformer_xl` {cached}, `compressive` {compressed}. That is {compressed / cached:.2f} times as far in all, and"
        f" {(compressed - base) / (cached - base):.2f} times beyond the {base} tokens of window that both have (c = {rate}).\n"
    )


def reach(rows: Iterable[Row], course: Course) -> int:
    """The most tokens between a sequence's first one and the question's segment at which, and below which, it was named.

    For courses that ask for the first tokens at the very end.
    """
    furthest, named = 0, (course.task_name, course.setting, course.mechanism, course.variant)
    for row in sorted((row for row in rows if _course(row) == named), key=lambda row: int(row["length"])):
        if row["accuracy"] < REACHED:
            break
        furthest = (row["length"] - 1) // course.ring.segment * course.ring.segment
    return furthest


def _lines(rows: Iterable[Row], code: str = "") -> list[list[str]]:
    """Courses as cells: accuracy at every length, controls at the longest."""
    lines = []
    for (task, setting, mechanism, variant), group in groupby(rows, key=_course):
        found = sorted(group, key=lambda row: int(row["length"]))
        last = found[-1]
        lines.append(
            [
                f"{task}, {setting}" if setting else task,
                f"{code}{mechanism}{code} {variant}".strip(),
                " ".join(f"{row['length']:,} ({row['folds']}): {_share(row['accuracy'])}" for row in found),
                *(_share(last[name]) for name in ("memory_off", "shuffled", "window_only", "chance")),
                f"{last['state_bytes'] / 1024:.0f} KiB",
                f"{last['steps']:,}",
                f"{last['seconds']:.0f}",
            ]
        )
    return lines


def _course(row: Row) -> tuple[str, ...]:
    return row["task"], row["setting"], row["mechanism"], row["variant"]


def _share(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.2f}"
