"""Layers in one native call, beside the same layers one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from models import transformer
from models.quantized import Quantizer
from models.state import MemoryState
from models.transformer import Decoder
from tests.models.memories import ROWS, Row, each
from tests.models.native.test_attention import capable
from tests.models.sessions import random_tokens, slots_config
from tests.models.test_quantized import decoder

STREAM = 150  # a ring of 48 tokens, segments of 16: seven folds


def one_by_one(_: object, places: object) -> bool:
    return False


def taken(model: Decoder, cuts: Sequence[int]) -> MemoryState:
    """Two of four sessions, which do not stand at the same position, take in what is cut into calls."""
    slab = model.empty_state(4)
    model(torch.tensor([random_tokens(model, 5, seed=1)]), slab.select([3]))
    tokens = torch.tensor([random_tokens(model, STREAM, seed=seed) for seed in (2, 3)])
    both = slab.select([3, 1])
    for part in tokens.split([*cuts, STREAM - sum(cuts)], dim=1):
        model(part, both)
    return slab


def assert_alike(found: MemoryState, expected: MemoryState) -> None:
    for name, tensor in expected.tensors().items():
        if tensor.dtype in (torch.int32, torch.int64):
            assert torch.equal(found.read(name), tensor), name
        torch.testing.assert_close(found.read(name).float(), tensor.float(), rtol=1e-2, atol=1e-2)


@capable
@each(ROWS)
@pytest.mark.parametrize("cuts", [(), (50, 30), (17, 1, 1, 40)], ids=str)
@torch.inference_mode()
def test_equals_layers_one_by_one(row: Row, cuts: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Quantizer().quantize(decoder(row))
    found = taken(model, cuts)
    with monkeypatch.context() as patched:
        patched.setattr(transformer._Stack, "takes", one_by_one)
        expected = taken(model, cuts)
    assert_alike(found, expected)


@capable
@torch.inference_mode()
def test_layers_beyond_those_wanted_are_left_alone() -> None:
    heads = ((0, 1), (1, 0))
    model = Quantizer().quantize(decoder(replace(ROWS["slots"], config=slots_config(heads=heads))))
    tokens = torch.tensor([random_tokens(model, 96)])
    seen, left = model.empty_state(), model.empty_state()
    model.run(tokens, seen)
    model.run(tokens[:, :48], left)
    model.read_through(tokens[:, 48:], left, ahead=4 * 48)
    for layer in range(4):
        assert torch.equal(left.read("ring_keys", layer), seen.read("ring_keys", layer)) == (layer < 2)
    assert torch.equal(left.read("slot_keys"), seen.read("slot_keys"))


@capable
@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    model = Quantizer().quantize(decoder(ROWS["window"]))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = taken(model, (40,))
        torch.set_num_threads(threads)
        found = taken(model, (40,))
    finally:
        torch.set_num_threads(before)
    # Keys that are shared out among threads are summed in another order.
    for name, tensor in expected.tensors().items():
        assert (found.read(name).float() - tensor.float()).norm() <= 0.01 * tensor.float().norm(), name
