"""Courses, their controls, and the results that are kept of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.learn.__main__ import run
from bench.learn.course import Course, Ring, with_controls
from bench.learn.courses import COMPRESSED, COURSES, REACH
from bench.learn.examine import take
from bench.learn.report import BEGIN, END, compared_reach, reach, screen, table, with_table
from bench.learn.results import Results
from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel
from models.adapt.tasks.passkey import Passkey

TINY = Course(
    mechanism="infini",
    variant="linear",
    task_name="passkey",
    task=Passkey(digits=1, alphabet=4, filler=2, depth=0.0),
    lengths=(12, 20),
    train=TrainSettings(first_segments=3, last_segments=3, steps=2, batch=4, seed=3),
    ring=Ring(4, 4),
    model=SmallModel(layers=1, hidden=32, inner=32),
    options={"rule": "linear"},
    trials=8,
)


def row(length: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A row of TINY as it would be kept."""
    return {
        "mechanism": "infini",
        "variant": "linear",
        "task": "passkey",
        "setting": "",
        "length": length,
        "folds": length // 4 - 3,
        "accuracy": accuracy,
        "memory_off": 0.25,
        "shuffled": 0.2,
        "window_only": None,
        "chance": 0.25,
        "steps": 2,
        "segments": 3,
        "seconds": 1.0,
        "seed": 3,
        "state_bytes": 2048,
        **changes,
    }


def test_every_course_of_the_matrix_can_be_built_and_has_a_name_of_its_own_and_its_control_before_it() -> None:
    courses = with_controls(COURSES)
    names = [course.name for course in courses]
    assert len(set(names)) == len(names)
    for course in courses:
        assert course.build().config.vocab_size == course.task.vocab_size
        assert course.as_control() in courses[: courses.index(course) + 1], "the control comes first"


def test_a_course_is_taken_and_examined_at_every_length() -> None:
    rows = take(TINY)
    assert [(one["length"], one["folds"]) for one in rows] == [(12, 0), (20, 2)]
    for found in rows:
        assert found["steps"] == 2
        assert found["state_bytes"] == TINY.build().empty_state().nbytes
        assert 0 <= found["accuracy"] <= 1
    again = take(TINY)
    assert [one | {"seconds": 0} for one in again] == [one | {"seconds": 0} for one in rows]


def test_a_course_may_have_a_training_before_and_rates_that_its_control_has_not() -> None:
    before = replace(TINY.train, steps=1, first_segments=1, last_segments=1)
    course = replace(TINY, before=before, lengths=(12,), rates={"gate_learning_rate": 0.5})
    assert [(one.steps, one.gate_learning_rate) for one in course.trainings] == [(1, 0.5), (2, 0.5)]
    assert [one.gate_learning_rate for one in course.as_control().trainings] == [1e-2, 1e-2]
    (found,) = take(course)
    assert (found["steps"], found["segments"]) == (3, 3)


def test_courses_run_in_processes_of_their_own_and_each_row_stands_beside_its_control(tmp_path: Path) -> None:
    courses = with_controls((TINY,))
    path = tmp_path / "learn.json"
    results = Results(path, courses)
    run(list(courses), results, 1, Console(quiet=True))
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [(one["mechanism"], one["length"]) for one in rows] == [
        ("window", 12),
        ("window", 20),
        ("infini", 12),
        ("infini", 20),
    ]
    assert [one["window_only"] for one in rows] == [rows[place]["accuracy"] for place in (0, 1, 0, 1)]
    assert all(Results(path, courses).has(course) for course in courses)


def test_what_was_taken_is_replaced_and_only_with_all_its_lengths_and_its_seed_counts_as_taken(tmp_path: Path) -> None:
    path = tmp_path / "learn.json"
    results = Results(path, with_controls((TINY,)))
    assert not results.has(TINY)
    results.add(TINY, [row(12, 0.5), row(20, 0.5)])
    assert results.has(TINY)
    results.add(TINY, [row(12, 0.75)])
    again = Results(path, with_controls((TINY,)))
    assert [one["accuracy"] for one in again.rows] == [0.75]
    assert again.rows[0]["window_only"] is None, "the control was not taken yet"
    assert not again.has(TINY)
    assert not again.has(replace(TINY, lengths=(12,), train=replace(TINY.train, seed=4)))
    assert again.has(replace(TINY, lengths=(12,)))


def test_the_reach_ends_where_the_first_answer_is_missed() -> None:
    rows = [row(13, 0.95), row(9, 1.0), row(21, 1.0), row(17, 0.6), row(9, 0.1, setting="another")]
    assert reach(rows, TINY) == 12
    assert reach(rows[3:], TINY) == 0


def test_reaches_are_compared_in_all_and_beyond_the_common_window() -> None:
    cached = {"setting": REACH.setting, "mechanism": REACH.mechanism, "variant": REACH.variant}
    compressed = {"setting": COMPRESSED.setting, "mechanism": COMPRESSED.mechanism, "variant": COMPRESSED.variant}
    rows = [row(48, 1.0, **cached), row(56, 0.1, **cached)]
    assert compared_reach(rows) == ""
    text = compared_reach([*rows, row(144, 1.0, **compressed), row(152, 0.1, **compressed)])
    assert "`transformer_xl` 40, `compressive` 136. That is 3.40 times" in text
    assert "4.00 times beyond the 8 tokens" in text


def test_the_table_has_a_line_for_each_course_with_the_controls_at_the_longest() -> None:
    rows = [row(12, 0.5), row(20, 0.75, shuffled=0.1), row(12, 1.0, setting="far")]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2] == (
        "| passkey | `infini` linear | 12 (0): 0.50 20 (2): 0.75 | 0.25 | 0.10 | – | 0.25 | 2 KiB | 2 | 1 |"
    )
    assert lines[3].startswith("| passkey, far |")
    assert screen(rows).row_count == 2


def test_the_table_replaces_what_stands_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "memory.md"
    monkeypatch.setattr("bench.learn.report.DOCS", docs)
    docs.write_text("# Memory\n\nText.\n", encoding="utf-8")
    docs.write_text(with_table([row(12, 0.5)]), encoding="utf-8")
    once = with_table([row(12, 0.25)])
    assert once == f"# Memory\n\nText.\n\n{BEGIN}{table([row(12, 0.25)])}{END}"
