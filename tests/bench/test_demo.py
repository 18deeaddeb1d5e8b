"""The demo, whole, on a model that cannot recall anything: what is counted must be right all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.demo.outcome import Answer, Outcome


@pytest.mark.usefixtures("small_settings")
def test_nothing_is_lost_and_nothing_applied_twice(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "bench.demo", "--model", str(tiny_model), "--tokens", "1000", "--facts", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert list(summary) == [
        "tokens",
        "state_bytes_first",
        "state_bytes_last",
        "acknowledged_lost",
        "applied_twice",
        "facts_asked",
        "facts_recalled",
        "resume_ms",
    ]
    assert (summary["acknowledged_lost"], summary["applied_twice"]) == (0, 0)
    assert summary["tokens"] > 1000
    assert 0 < summary["state_bytes_first"] == summary["state_bytes_last"]
    assert (summary["facts_asked"], summary["facts_recalled"]) == (2, 0)
    assert summary["resume_ms"] > 0
    assert done.returncode == 1
    assert done.stdout.count("SIGKILL") == 2
    # The content is there, too, not only its length.
    assert "goes on as rehearsed before the crash in" in done.stdout
    assert "rounds otherwise" not in done.stdout
    (log,) = tmp_path.glob("palimpsest-demo-*.log")
    assert str(log) in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith("palimpsest-demo-")]


def test_a_model_that_cannot_be_served_fails_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PALIMPSEST_WINDOW", "none")
    done = subprocess.run(
        [sys.executable, "-m", "bench.demo"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    (log,) = tmp_path.glob("palimpsest-demo-*.log")
    assert str(log) in done.stdout
    assert "Traceback" not in done.stderr


def _outcome(*answers: str) -> Outcome:
    given = [Answer("q", f" {answer} ", " 7", 10, 1, 5.0 + index, index < 2) for index, answer in enumerate(answers)]
    return Outcome(tokens_wanted=10, facts_asked=2, tokens=10, state_bytes_first=1, state_bytes_last=1, answers=given)


def test_only_the_last_round_of_questions_counts() -> None:
    assert _outcome("8", "7", "7").passed
    assert _outcome("7", "7", "8").facts_recalled == 1
    assert not _outcome("7", "7", "8").passed
    assert _outcome("7", "7", "7").summary()["resume_ms"] == 6


@pytest.mark.parametrize(
    ("name", "value"), [("lost", 1), ("twice", 1), ("tokens", 9), ("state_bytes_last", 2), ("facts_asked", 4)]
)
def test_any_flaw_fails(name: str, value: int) -> None:
    outcome = _outcome("7", "7", "7")
    setattr(outcome, name, value)
    assert not outcome.passed
