"""How sharply slots are looked at is learned, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from models.adapt import sharpen as module
from models.adapt.sharpen import Progress, sharpen
from models.attention import Far, attend_jointly
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


def test_long_calls_pass_the_same_gradients_as_short_ones() -> None:
    """Nothing but the two asks for gradients, as in the lowest layer: a fused kernel that loses some must not be taken."""
    generator = torch.Generator().manual_seed(0)
    query, far_query = torch.randn(2, 1, 2, 3, 20, 8, generator=generator).double()
    keys, values, far_keys, far_values = torch.randn(4, 1, 2, 30, 8, generator=generator).double()
    bias = torch.zeros(1, 1, 3 * 20, 30).double()
    found = []
    for cut in (20, 5):
        sharpness, offset = (
            torch.full((2, 3), 1.5).double().requires_grad_(),
            torch.zeros(2, 3).double().requires_grad_(),
        )
        far = Far([0, 1], far_keys, far_values, sharpness=sharpness, offset=offset)
        parts = zip(query.split(cut, dim=3), far_query.split(cut, dim=3), strict=True)
        outs = [attend_jointly(near, keys, values, bias[:, :, : 3 * cut], away, far) for near, away in parts]
        found.append(torch.autograd.grad(torch.cat(outs, dim=3).square().sum(), (sharpness, offset)))
    for long, short in zip(*found, strict=True):
        torch.testing.assert_close(long, short)
        assert long.abs().min() > 1e-6
