"""How sharply slots are looked at is learned, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from models.adapt import sharpen as module
from models.adapt.sharpen import Progress, sharpen
from models.errors import ConfigError
from models.memory.slots import Slots
from models.probes import prose
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint, load_checkpoint
from tests.models.sessions import build, open_memory, slots_config


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_model), dtype=torch.float32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTHS", (700, 900))
    monkeypatch.setattr(module, "REPEATS", (6,))


def taught(checkpoint: Checkpoint, steps: int) -> tuple[Decoder, list[Progress]]:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(decoder.memory)
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    said: list[Progress] = []
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    sharpen(decoder, tokenizer, book, steps=steps, text_weight=3.0, seed=0, say=said.append)
    return decoder, said


def test_only_sharpness_and_offset_are_learned(checkpoint: Checkpoint) -> None:
    decoder, said = taught(checkpoint, 20)
    untouched = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(untouched.memory)
    for name, parameter in decoder.memory.named_parameters():
        same = torch.equal(parameter, dict(untouched.memory.named_parameters())[name])
        assert same == (name not in ("sharpness", "offset")), name
        assert parameter.isfinite().all()
        assert not parameter.requires_grad
    assert [progress.step for progress in said] == [10, 20]


def test_the_same_seed_learns_the_same(checkpoint: Checkpoint) -> None:
    (one, _), (other, _) = taught(checkpoint, 3), taught(checkpoint, 3)
    assert isinstance(one.memory, Slots)
    assert isinstance(other.memory, Slots)
    assert torch.equal(one.memory.sharpness, other.memory.sharpness)


def test_a_short_book_is_refused(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1))
    with pytest.raises(ConfigError, match="at least 1158 are needed"):
        sharpen(
            decoder,
            Tokenizer.of(checkpoint.tokenizer),
            [5] * 1000,
            steps=1,
            text_weight=1.0,
            seed=0,
            say=lambda _: None,
        )
