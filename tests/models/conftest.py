"""The tiny model's checkpoint, in float32, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.tokenizer import Tokenizer, TokenizerSource
from models.weights.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tiny_model: Path) -> Checkpoint:
    """Loaded once: a checkpoint is never written to."""
    return load_checkpoint(str(tiny_model))


@pytest.fixture(scope="session")
def tokenizer_source(checkpoint: Checkpoint) -> TokenizerSource:
    return checkpoint.tokenizer


@pytest.fixture(scope="session")
def tokenizer(tokenizer_source: TokenizerSource) -> Tokenizer:
    return Tokenizer.of(tokenizer_source)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are quicker on one thread, and the machine may be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
