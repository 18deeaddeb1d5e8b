"""Figures as rows of a JSON file, which is written after every one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from models.errors import ModelsError

TASKS = ("passkey", "needle", "multikey", "multivalue", "rewrite", "facts", "nll", "kl")
"""In the order of the rows."""
IN_NATS = ("nll", "kl")
"""Tasks whose figures are nats a token; all others' are shares."""


@dataclass(frozen=True)
class Result:
    """One figure. `accuracy` is digits for needles, numbers for multivalue, nats a token for nll and kl, exact match for all else.

    `length` is in tokens, `depth` says where in them, `trials` counts what the figure is a mean of.
    """

    mechanism: str
    task: str
    length: int
    depth: str
    trials: int
    accuracy: float
    state_bytes: int


class Results:
    """What this run has measured, and the file of it. What else an earlier run measured stays in the file."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        """Raises `ModelsError` when `out` is something else, and `OSError` when it cannot be read or has no folder."""
        self._out, self._say = out, say
        self.rows: list[Result] = []
        out.parent.mkdir(parents=True, exist_ok=True)
        self._earlier = _read(out) if out.exists() else []

    def add(self, result: Result) -> None:
        """Note a figure in the file, instead of the one that stood there."""
        self.rows.append(result)
        self._save()
        where = f"{result.task:<10} {result.length:>7,} {result.depth:<10}"
        self._say(f"{time.strftime('%H:%M:%S')} {where} {result.mechanism:<20} {result.accuracy:.4f}")

    def has(self, mechanism: str, task: str, length: int, depth: str, trials: int) -> bool:
        """Whether the file has this figure, and of no fewer trials."""
        wanted = (mechanism, task, length, depth)
        return any(_what(row) == wanted and row["trials"] >= trials for row in self.written)

    @property
    def written(self) -> list[Mapping[str, Any]]:
        """All rows of the file."""
        measured = {_what(asdict(one)) for one in self.rows}
        rows = [row for row in self._earlier if _what(row) not in measured] + [asdict(one) for one in self.rows]
        return sorted(rows, key=lambda row: (TASKS.index(row["task"]), row["length"]))

    def _save(self) -> None:
        # A run that is killed while it writes must not take with it what it had.
        begun = self._out.with_name(f"{self._out.name}.new")
        begun.write_text(json.dumps(self.written, indent=1) + "\n", encoding="utf-8")
        begun.replace(self._out)


def _read(path: Path) -> list[Mapping[str, Any]]:
    wanted = {field.name for field in fields(Result)}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if all(wanted <= row.keys() and row["task"] in TASKS for row in rows):
            return list(rows)
    except (ValueError, TypeError, AttributeError):
        pass
    raise ModelsError(f"{path} has no rows of results; name another file, or remove it")


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is a measurement of."""
    return row["mechanism"], row["task"], row["length"], row["depth"]
