"""What slots foretell natively, beside the same in torch."""

from __future__ import annotations

import pytest
import torch

from models import native
from models.config import MemoryConfig
from models.memory.importance import Learned
from models.state import MemoryState
from tests.models.native.test_attention import capable


def foreteller() -> Learned:
    learned = Learned(MemoryConfig(window=32, segment=16), 5, 96, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for parameter in learned.parameters():
        parameter.requires_grad_(False).normal_(0, 0.3, generator=generator)
    return learned


@capable
@pytest.mark.parametrize("length", [1, 30])
def test_equals_torch(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = foreteller()
    hidden = torch.randn(2, length + 1, 96, generator=torch.Generator().manual_seed(2))[:, 1:] * 50
    positions = torch.tensor([[3], [1_000_003]]) + torch.arange(length)
    found = []
    for natively in (True, False):
        if not natively:
            monkeypatch.setattr(native, "suits_hear", lambda *_: False)
        state = MemoryState.empty(learned.spec(), 4)
        learned.hear(hidden, positions, state.select([3, 1]))
        found.append(state.read("importance"))
    assert found[1].count_nonzero() == 2 * length * 5
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@capable
def test_what_learns_goes_the_long_way() -> None:
    learned, hidden = foreteller(), torch.zeros(1, 1, 96)
    state = MemoryState.empty(learned.spec(), 1)
    assert native.suits_hear(learned, hidden, state)
    assert not native.suits_hear(learned.requires_grad_(), hidden, state)
    with torch.no_grad():
        assert native.suits_hear(learned, hidden, state)
    assert not native.suits_hear(foreteller(), hidden.double(), state)
