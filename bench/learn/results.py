"""The results as a file: rows of courses that were taken, each beside its control."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bench.learn.course import Course
from bench.learn.examine import Row


class Results:
    """A list of rows in JSON, written whole after every course."""

    def __init__(self, path: Path, courses: Iterable[Course]) -> None:
        self._path = path
        self._courses = list(courses)
        self.rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def has(self, course: Course) -> bool:
        """Whether the course was taken, with all of its lengths and the seed it has now."""
        held = {(row["length"], row["seed"]) for row in self.rows if _of(course, row)}
        return held == {(length, course.train.seed) for length in course.lengths}

    def add(self, course: Course, rows: list[Row]) -> None:
        """Replace what there is of the course, and write; rows stand in the order of the courses."""
        kept = [row for row in self.rows if not _of(course, row)]
        place = {_key(one): number for number, one in enumerate(self._courses)}
        self.rows = sorted(kept + rows, key=lambda row: place.get(_row_key(row), len(place)))
        self._enter_controls()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_name(self._path.name + ".part")
        written.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        written.replace(self._path)

    def _enter_controls(self) -> None:
        known = {(*_row_key(row), row["length"]): row["accuracy"] for row in self.rows}
        controls = {_key(course): _key(course.as_control()) for course in self._courses}
        for row in self.rows:
            control = controls.get(_row_key(row))
            row["window_only"] = None if control is None else known.get((*control, row["length"]))


def _key(course: Course) -> tuple[str, ...]:
    return course.task_name, course.setting, course.mechanism, course.variant


def _row_key(row: Row) -> tuple[str, ...]:
    return row["task"], row["setting"], row["mechanism"], row["variant"]


def _of(course: Course, row: Row) -> bool:
    return _key(course) == _row_key(row)
