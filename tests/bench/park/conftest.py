"""A runner of the tiny model, with room for two sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import load
from server.worker.runner import Runner
from server.worker.runners import Runners


@pytest.fixture(scope="module")
def runner(tiny_model: Path) -> Runner:
    settings = load(
        model=str(tiny_model),
        memory="window",
        window=32,
        segment=16,
        sinks=4,
        dtype="float32",
        threads=1,
        resident_sessions=2,
    )
    runners = Runners(settings, 0)
    runners.load()
    return runners.default
