"""The tiny model's checkpoint, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.weights.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tiny_model: Path) -> Checkpoint:
    """Loaded once: a checkpoint is never written to."""
    return load_checkpoint(str(tiny_model))
