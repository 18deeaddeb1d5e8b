"""How slots are asked for and laid out, beside what plain torch makes of the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import native
from models.asked import Around, Asked, Recent
from models.config import ModelConfig
from models.layers import Rotary, rotate
from models.memory.look import TRAIL, Look
from tests.models.native.test_attention import capable
from tests.models.native.test_dense import CONFIG

RING = 48
HEADS, PART = [0, 2], slice(3, 5)  # of a layer's three; the fourth and fifth of all that the look knows


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def taught(size: int) -> Look:
    look = Look(6, 3, size, torch.float32).requires_grad_(False)
    for number, parameter in enumerate(look.parameters()):
        parameter.copy_(drawn(*parameter.shape, seed=100 + number) * 0.3)
    return look


def asked(size: int, positions: list[int], length: int, rows: Tensor | None) -> tuple[Asked, Recent]:
    """Sessions at these positions, in a ring of 48 tokens, and what they see of the keys before them."""
    count, sessions = len(positions), 4
    ring = drawn(sessions, 5, 3, RING, size, seed=1).bfloat16()
    places = torch.tensor(positions)[:, None] + torch.arange(-TRAIL, length)
    known, held = places >= 0, places.clamp_min(0)
    rotary = Rotary(ModelConfig(**{**vars(CONFIG), "head_dim": size}), "cpu")
    cos, sin = rotary.table(held)
    far_cos, far_sin = rotary.table(torch.tensor([[RING]]))
    around = Around(ring, rows, 3, held % RING, cos, sin, known)
    chosen = torch.arange(count) if rows is None else rows
    keys = ring[chosen[:, None], 3, :, held % RING].transpose(1, 2)
    plain = drawn(count, 9, length, size, seed=2).bfloat16().unflatten(1, (3, 3))
    nothing = [0] * count
    return (
        Asked(plain, plain, far_cos, far_sin, nothing, nothing, None, around),
        Recent(rotate(keys.float(), cos, -sin), known),
    )


@capable
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(
    ("positions", "length", "rows"), [([70], 1, None), ([3, 90], 1, [2, 0]), ([0], 40, None), ([5, 61, 33], 7, None)]
)
def test_queries_ask_for_what_the_look_says(
    positions: list[int], length: int, rows: list[int] | None, size: int
) -> None:
    look = taught(size)
    question, recent = asked(size, positions, length, None if rows is None else torch.tensor(rows))
    with torch.no_grad():
        assert native.suits_look(question, look)
        found = native.look_far(question, look, HEADS, PART)
        expected = look(question.far[:, HEADS], recent.of(HEADS).before(TRAIL), PART)
    for one, wanted in zip(found, expected, strict=True):
        assert one.shape == wanted.shape
        assert one.dtype == wanted.dtype
        assert (one.float() - wanted.float()).norm() < 2**-8 * wanted.float().norm()


@capable
def test_a_look_that_is_being_taught_goes_the_long_way() -> None:
    question, _ = asked(64, [70], 1, None)
    look = taught(64)
    assert native.suits_look(question, look)
    assert not native.suits_look(question, look.requires_grad_())
