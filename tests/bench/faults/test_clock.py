"""The clock of a faulty server lies by as much as a file says, from one moment to the next."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.faults.scenarios.clocks import CLOCK

PROGRAM = "import time; print(time.time()); print(time.time_ns()); print(time.monotonic())"


@pytest.mark.parametrize("offset", [0, 86_400, -86_400 * 3650])
def test_time_is_off_by_what_the_file_says(tmp_path: Path, offset: int) -> None:
    (tmp_path / "offset").write_text(str(offset))
    environment = {**os.environ, "PYTHONPATH": str(CLOCK), "FAULTS_CLOCK": str(tmp_path / "offset")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    seconds, nanoseconds, monotonic = map(float, done.stdout.split())
    assert seconds == pytest.approx(time.time() + offset, abs=30)
    assert nanoseconds / 1e9 == pytest.approx(seconds, abs=5)
    # Nobody can set that one.
    assert monotonic == pytest.approx(time.monotonic(), abs=30)
