"""The reader of presses: a model of transformers that is asked like all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.presses.reader import PressReader
from bench.transformers_model import of_transformers
from models.evaluate.reading import full_attention_reader
from models.weights.checkpoint import load_checkpoint

TEXT = list(range(40, 340))
QUESTION = [7, 8, 9]


@contextmanager
def nothing(_: Any) -> Iterator[None]:
    yield


def test_a_press_that_drops_nothing_answers_like_full_attention(tiny_model: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_model), dtype=torch.float32)
    full = full_attention_reader(checkpoint, 400)
    told: list[tuple[int, float]] = []

    def press(length: int, fits: float) -> Any:
        told.append((length, fits))
        return nothing

    config = checkpoint.config
    entry = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    reader = PressReader("null", full.model, of_transformers(checkpoint), press, 100 * entry)
    state, wanted = reader.read(reader.empty(), TEXT[:100]), full.read(full.empty(), TEXT)
    state = reader.read(state, TEXT[100:])
    for question in (QUESTION, [3, 4]):  # the first leaves no trace in the cache
        assert reader.answer(state, question, 12) == full.answer(wanted, question, 12)
    assert told == [(300, 100.0)]
    reader.answer(reader.read(state, [5]), QUESTION, 1)
    assert told[1:] == [(301, 100.0)]
    assert reader.state_bytes == 100 * entry
