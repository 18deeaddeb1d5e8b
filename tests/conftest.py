"""A tiny model that every test may load: real files, random weights, made anew for each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a 4-layer Llama with random weights: the same bytes in every run."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))
