"""The most telling faults of the matrix, on real processes: what was acknowledged is there, once, and goes on as it should."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(420)
def test_nothing_acknowledged_is_lost_in_the_quick_matrix() -> None:
    command = [sys.executable, "-m", "bench.faults", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["faults"] == figures["passed"] > 5
    assert (figures["acknowledged_lost"], figures["applied_twice"], figures["wrong_continuations"]) == (0, 0, 0)


def test_a_fault_that_is_none_is_said_to_be_none() -> None:
    command = [sys.executable, "-m", "bench.faults", "--only", "volcano"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no fault is named like" in done.stderr
