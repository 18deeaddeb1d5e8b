"""How evicted tokens go into slots, beside the same in torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import native
from models.layers import Rotary, rotate
from models.memory.base import Evicted, Left
from models.memory.slots import WORTHLESS, Slots
from models.state import MemoryState
from tests.models.native import test_dense
from tests.models.native.test_attention import capable
from tests.models.sessions import slots_config

CONFIG = replace(test_dense.CONFIG, num_layers=2)
SEGMENT, SINKS, RING = 16, 4, 48


def memory(**changes: Any) -> Slots:
    settings = {
        "heads": ((0, 1), (1, 0), (1, 1)),
        "sinks": SINKS,
        "segment": SEGMENT,
        "window": RING - SEGMENT,
        **changes,
    }
    slots = Slots(CONFIG, slots_config(**settings), torch.bfloat16)
    generator = torch.Generator().manual_seed(5)
    for parameter in slots.parameters():
        parameter.requires_grad_(False).normal_(0, 0.2, generator=generator)
    return slots


class Texts:
    """A ring of two layers and four sessions."""

    def __init__(self, slots: Slots) -> None:
        self.rotary, self.slots = Rotary(CONFIG, "cpu"), slots
        self.generator = torch.Generator().manual_seed(6)
        shape = (4, CONFIG.num_layers, CONFIG.num_kv_heads, SINKS + RING, CONFIG.head_dim)
        self.keys, self.values = torch.zeros(shape).bfloat16(), torch.zeros(shape).bfloat16()
        self.states = [MemoryState.empty(slots.spec(), 4) for _ in range(2)]

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def leave(self, starts: dict[int, int]) -> Evicted:
        """A segment of some sessions, from positions on."""
        rows, begin = torch.tensor(list(starts)), torch.tensor(list(starts.values()))
        positions = begin[:, None] + torch.arange(SEGMENT + self.slots.lookahead)
        cos, sin = self.rotary.table(positions)
        places = SINKS + positions % RING
        for row, at in zip(rows, places, strict=True):
            for ring in (self.keys, self.values):
                ring[row][:, :, at] = self.drawn(*ring.shape[1:3], len(at), CONFIG.head_dim).bfloat16() + 1
        left = Left(self.keys, self.values, rows, places, cos, sin)

        def take(layer: int) -> tuple[Tensor, Tensor]:
            keys = torch.stack([self.keys[row, layer, :, at] for row, at in zip(rows, places, strict=True)])
            values = [self.values[row, layer, :, at[:SEGMENT]] for row, at in zip(rows, places, strict=True)]
            return rotate(keys.float(), cos, -sin), torch.stack(values)

        drawn = torch.randint(0, 60, (len(rows), SEGMENT), generator=self.generator)
        return Evicted(
            take=lambda: take(1),
            tokens=positions[:, :SEGMENT].to(torch.int32) + 1000,
            said=(drawn * 2_654_435_761 % 2**31 * (drawn > 5)).to(torch.int32),  # a few behind nothing
            starts=begin,
            counted=positions[:, :SEGMENT] >= SINKS,
            left=left,
        )

    def fold(self, starts: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Into both states: natively, and in torch."""
        evicted = self.leave(starts)
        assert evicted.left is not None
        heard = self.drawn(len(starts), 2 * RING, 3).round(decimals=1)  # some are equal
        for index, state in enumerate(self.states):
            chosen = MemoryState(dict(state._tensors), evicted.left.rows)
            if "importance" in self.slots.spec():
                chosen.write("importance", heard[:, : state.read("importance").shape[1]])
            with monkeypatch.context() as patched:
                if index:
                    patched.setattr(native, "suits_fold", lambda *_: False)
                self.slots.fold(1, chosen, evicted)


@capable
@pytest.mark.parametrize("ends", [(), (3,)], ids=["", "said last"])
@pytest.mark.parametrize("importance", ["learned", "leverage"])
@pytest.mark.parametrize("slot_dtype", ["same", "bf16", "int8", "int4"])
@torch.inference_mode()
def test_equals_torch(importance: str, slot_dtype: str, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    slots = memory(importance=importance, slot_dtype=slot_dtype, slots=40, reach=6, ends=ends)
    texts, worthless = Texts(slots), False
    for number in range(8):
        one = {0: number * SEGMENT}
        texts.fold(one if number < 3 else {2: (number - 3) * SEGMENT, **one}, monkeypatch)
        ours, plain = ({name: x.clone() for name, x in state.tensors().items()} for state in texts.states)
        assert not ours["slot_token"][1].any()
        for name in ("slot_token", "slot_position", "slot_score"):
            assert torch.equal(ours[name], plain[name]), name
        worthless |= bool((ours["slot_score"] == WORTHLESS).any())
        for name, found in ours.items():
            expected = plain[name]
            if found.dtype in (torch.int8, torch.uint8):
                assert (found != expected).float().mean() < 0.002, name  # where rounding was a matter of the last bit
            else:
                torch.testing.assert_close(
                    found, expected, rtol=2**-7 if found.dtype == torch.bfloat16 else 1e-4, atol=1e-5
                )
    assert worthless == bool(ends)


@capable
def test_what_learns_goes_the_long_way() -> None:
    texts = Texts(memory(slots=40))
    evicted, score = texts.leave({0: 0}), torch.zeros(1, 2, SEGMENT)
    assert native.suits_fold(evicted, score)
    assert not native.suits_fold(evicted, score.requires_grad_())
