"""How far slots are asked, and which of equal ones counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.asked import Before
from models.memory.look import TRAIL, Look
from models.memory.slots import Slots
from models.weights.checkpoint import load_checkpoint
from tests.models.sessions import build, open_memory, slots_config


def random_look() -> Look:
    look = Look(3, 2, 8, torch.float32)
    for number, parameter in enumerate(look.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    return look


def test_untrained_it_asks_for_what_was_asked_and_adds_nothing() -> None:
    query, told = torch.randn(1, 3, 2, 5, 8), torch.randn(1, 3, 5, 8, TRAIL)
    asked, offset, slope = Look(3, 2, 8, torch.float32)(query, Before(told, torch.ones(TRAIL).bool()), slice(0, 3))
    assert torch.equal(asked, query)
    assert not offset.any()
    assert not slope.any()


def test_slopes_are_what_the_formula_says() -> None:
    look = random_look()
    query, told = torch.randn(1, 2, 2, 5, 8), torch.randn(1, 2, 5, 8, TRAIL)
    _, offset, slope = look(query, Before(told, torch.ones(TRAIL).bool()), slice(1, 3))
    for head, group, place in ((0, 0, 0), (1, 1, 4)):
        one = query[0, head, group, place]
        steep = one @ look.slope[1 + head, group] / 8**0.5 + look.steepness[1 + head, group]
        eager = one @ look.eagerness[1 + head, group] / 8**0.5 + look.offset[1 + head, group]
        torch.testing.assert_close(slope[0, head, group, place], steep)
        torch.testing.assert_close(offset[0, head, group, place], eager)


def test_what_was_learned_before_there_were_slopes_has_none() -> None:
    older = {name: tensor for name, tensor in random_look().state_dict().items() if name not in ("slope", "steepness")}
    look = random_look()
    look.load_state_dict(older, strict=True)
    assert not look.slope.any()
    assert not look.steepness.any()
    del older["gain"]
    with pytest.raises(RuntimeError, match="gain"):
        look.load_state_dict(older, strict=True)


def test_ages_go_from_the_newest_slot_of_each_session_to_its_oldest(tiny_model: Path) -> None:
    memory = build(load_checkpoint(str(tiny_model)), slots_config(importance="learned", listens=1)).memory
    assert isinstance(memory, Slots)
    ages = memory._ages([2, 4], torch.device("cpu"))
    assert ages.shape == (2, 4)
    assert ages[0, :2].tolist() == [0.5, 0.0]
    assert ages[1].tolist() == [0.75, 0.5, 0.25, 0.0]


def test_a_slope_changes_what_is_said_of_a_long_text(tiny_model: Path) -> None:
    decoder = build(
        load_checkpoint(str(tiny_model), dtype=torch.float32), slots_config(importance="learned", listens=1)
    )
    open_memory(decoder.memory)
    assert isinstance(decoder.memory, Slots)
    assert decoder.memory.look is not None
    tokens = torch.arange(5, 305)[None]
    with_slope, _ = decoder(tokens, decoder.empty_state())
    with torch.no_grad():
        decoder.memory.look.slope.zero_()
        decoder.memory.look.steepness.zero_()
    without, _ = decoder(tokens, decoder.empty_state())
    assert not torch.allclose(with_slope, without, atol=1e-3)
