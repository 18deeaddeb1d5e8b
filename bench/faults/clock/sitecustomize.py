"""Makes `time.time` lie: a folder with this file on PYTHONPATH, and seconds to add in the file that FAULTS_CLOCK names."""

import os
import time
from pathlib import Path

_OFFSET = Path(os.environ["FAULTS_CLOCK"])
_honest = time.time


def _lying() -> float:
    return _honest() + float(_OFFSET.read_text() or 0)


time.time = _lying
time.time_ns = lambda: int(_lying() * 1e9)
