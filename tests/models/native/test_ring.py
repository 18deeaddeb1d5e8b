"""What is written into rings natively, beside the same in torch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from models import native
from models.config import MemoryConfig
from models.layers import Rotary
from models.memory.ring import Ring
from models.state import MemoryState
from tests.models.native import test_dense
from tests.models.native.test_attention import capable

CONFIG = replace(test_dense.CONFIG, num_layers=2)
SETTINGS = MemoryConfig(window=32, segment=16, sinks=4)


@capable
@torch.inference_mode()
def test_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(CONFIG, SETTINGS, Rotary(CONFIG, "cpu"), torch.bfloat16, 0, False)
    states = [MemoryState.empty(ring.spec(), 3) for _ in range(2)]
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    for number in range(24):
        rows = [[0], [0, 1, 2], [2, 0]][number % 3]
        # As a decoder gives them: heads behind tokens, and part of a longer chunk.
        keys, values = (draw(len(rows), 20, CONFIG.num_kv_heads, 32).bfloat16().transpose(1, 2) for _ in range(2))
        tokens = torch.zeros(len(rows), 8, dtype=torch.int64)
        for index, state in enumerate(states):
            with monkeypatch.context() as patched:
                if index:
                    patched.setattr(native, "suits_ring", lambda *_: False)
                chosen = state.select(rows)
                for piece in ring.plan(tokens, chosen):
                    span = slice(piece.begin, piece.end)
                    ring.write(1, piece.places, keys[:, :, span], values[:, :, span], chosen)
                    if piece.fold is not None:
                        ring.move_sinks(1, piece.fold)
                chosen.write("position", chosen.read("position") + 8)
    ours, plain = (state.tensors() for state in states)
    assert (ours["sink_keys"][:, 1] != 0).any(dim=-1).all()
    assert torch.equal(ours["ring_values"], plain["ring_values"])
    for name in ("sink_keys", "ring_keys"):
        assert not ours[name][:, 0].any()
        torch.testing.assert_close(ours[name], plain[name], rtol=2**-7, atol=1e-6)


@capable
def test_other_precisions_go_another_way() -> None:
    ring = Ring(CONFIG, SETTINGS, Rotary(CONFIG, "cpu"), torch.float32, 0, False)
    assert not native.suits_ring(MemoryState.empty(ring.spec(), 1))
