"""Settings with which the tiny model is served fast."""

from __future__ import annotations

import pytest


@pytest.fixture
def small_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment of a server with one thread and a small memory, in full precision."""
    settings = {"MEMORY": "window", "WINDOW": 32, "SEGMENT": 16, "SINKS": 4, "DTYPE": "float32", "THREADS": 1}
    for name, value in settings.items():
        monkeypatch.setenv(f"PALIMPSEST_{name}", str(value))
