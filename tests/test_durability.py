"""docs/durability.md names tests and faults: each of them must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from server.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "durability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def _place(name: str) -> Path:
    return ROOT / name if "/" in name else ROOT / "bench" / "faults" / "scenarios" / name


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_what_is_said_to_show_it_exists(file: str, function: str) -> None:
    tree = ast.parse(_place(file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function in defined


def test_every_failure_has_something_that_shows_it() -> None:
    table = PAGE.partition("## What shows it")[2].partition("## Not tested")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| failure")]
    assert len(rows) >= 10
    assert [row for row in rows if "::" not in row] == []


def test_settings_are_named_as_they_are_called() -> None:
    named = set(re.findall(rf"{PREFIX}(\w+)", PAGE))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)
