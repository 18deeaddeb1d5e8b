"""The command: all tasks and controls on a small model, the same at every run; what it cannot do it says in a line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.evaluate.__main__ import main
from models.evaluate.results import IN_NATS, TASKS

SHORT = ("--memory", "infini", "--lengths", "1024", "--trials", "1", "--threads", "1", "--dtype", "float32")
CONTROLS = {
    "infini linear",
    "infini linear, memory off",
    "infini linear, shuffled",
    "window 64 by 64",
    "full_attention",
}


@pytest.fixture
def evaluate(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command on a short text, in this process: starting one and importing torch takes longer."""

    def run(out: Path, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate", str(tiny_model), *SHORT, "--out", str(out), *options])
        main()

    return run


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def test_a_memory_is_measured_beside_all_its_controls(
    tiny_model: Path, tmp_path: Path, adapter: Path, options: str
) -> None:
    out, figure = tmp_path / "results.json", tmp_path / "results.png"
    command = [sys.executable, "-m", "models.evaluate", str(tiny_model), *SHORT, "--out", str(out)]
    command += ["--adapter", str(adapter), "--options", options, "--figure", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    for task in TASKS:
        measured = {row["mechanism"] for row in rows if row["task"] == task}
        expected = {"nll": CONTROLS - {"infini linear, shuffled"}, "kl": {"infini linear"}}
        assert measured == expected.get(task, CONTROLS)
    assert {row["depth"] for row in rows if row["task"] == "nll"} == {"whole", "0-512", "512-1024", "short"}
    assert all(row["accuracy"] <= 1 for row in rows if row["task"] not in IN_NATS)
    assert "What a session still knows" in done.stdout
    assert "shuffled is left out of nll" in done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_same_command_gives_the_same_figures_and_adds_to_what_is_there(
    evaluate: Callable[..., None], tmp_path: Path, adapter: Path, options: str
) -> None:
    few = ("--adapter", str(adapter), "--options", options, "--tasks", "nll", "needle", "--controls", "memory_off")
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for out in (one, other):
        evaluate(out, *few)
    assert rows_of(one) == rows_of(other)
    assert {row["mechanism"] for row in rows_of(one)} == {"infini linear", "infini linear, memory off"}
    evaluate(one, *few, "--tasks", "multikey", "--controls")
    assert [row for row in rows_of(one) if row["task"] != "multikey"] == rows_of(other)
    assert [row["mechanism"] for row in rows_of(one) if row["task"] == "multikey"] == ["infini linear"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--tasks", "sudoku"), "no task is called sudoku"),
        (("--controls", "placebo"), "no control is called placebo"),
        (("--memory", "elephant"), "no memory is called 'elephant'"),
        (("--lengths", "9"), "the shortest is 1,024"),
        (("--trials", "0"), "trials must be 1 or more"),
        (("--book", "FOLDER/short.txt"), "too few for the length 1,024"),
        (("--book", "FOLDER/latin.txt"), "is not in UTF-8"),
        (("--book", "FOLDER/missing.txt"), "missing.txt"),
        (("--adapter", "FOLDER/short.txt"), "cannot read the adapter"),
        (("--options", '{"rule": "magic"}'), "rule must be"),
        (("--out", "FOLDER/short.txt"), "short.txt has no rows of results"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(
    evaluate: Callable[..., None], tmp_path: Path, given: tuple[str, str], said: str
) -> None:
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"Caf\xe9. " * 4_000)
    name, value = given
    with pytest.raises(SystemExit) as raised:
        evaluate(tmp_path / "results.json", name, value.replace("FOLDER", str(tmp_path)))
    line = str(raised.value)
    assert line.startswith("evaluate: ")
    assert "\n" not in line
    assert said in line
    assert not (tmp_path / "results.json").exists()


def test_a_missing_matplotlib_is_noticed_before_anything_is_measured(
    evaluate: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("models.evaluate.__main__.load_checkpoint", pytest.fail)
    with pytest.raises(SystemExit, match="--figure needs matplotlib"):
        evaluate(tmp_path / "results.json", "--figure", str(tmp_path / "results.png"))


def test_what_was_measured_before_an_interruption_stays(
    evaluate: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("models.evaluate.evaluation.Evaluation.likelihood", interrupt)
    with pytest.raises(SystemExit) as raised:
        evaluate(tmp_path / "results.json", "--tasks", "multikey", "nll", "--controls")
    assert raised.value.code == 130
    assert "Interrupted" in capsys.readouterr().err
    assert [row["task"] for row in rows_of(tmp_path / "results.json")] == ["multikey"]
