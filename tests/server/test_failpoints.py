from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import StoreUnavailable
from server.failpoints import FailPoints


def _points(text: str, folder: Path) -> FailPoints:
    points = FailPoints.from_environment({"PALIMPSEST_FAILPOINTS": text, "PALIMPSEST_FAILPOINTS_DIR": str(folder)})
    assert points is not None
    return points


def test_nothing_asked_for_is_nothing() -> None:
    assert FailPoints.from_environment({}) is None


def test_fails_the_nth_time_and_only_then(tmp_path: Path) -> None:
    points = _points("journal.before=error@2", tmp_path)
    points.reach("journal.before")
    points.reach("journal.after")
    with pytest.raises(StoreUnavailable):
        points.reach("journal.before")
    points.reach("journal.before")


def test_a_process_started_anew_does_not_fail_again(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        _points("load.before=error", tmp_path).reach("load.before")
    _points("load.before=error", tmp_path).reach("load.before")


@pytest.mark.parametrize("text", ["journal.befor=kill", "journal.before=explode", "journal.before"])
def test_refuses_what_it_does_not_know(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no place or no action"):
        _points(text, tmp_path)
