"""The gated delta rule in chunks, beside the recurrence token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.memory.delta_rule import gated_delta_rule


def one_by_one(memory: Tensor, keys: Tensor, values: Tensor, write: Tensor, log_decay: Tensor) -> Tensor:
    for token in range(keys.shape[2]):
        key, value = keys[:, :, token, None], values[:, :, token, None]
        faded = log_decay[:, :, token, None, None].exp() * memory
        memory = faded + write[:, :, token, None, None] * key.transpose(-1, -2) @ (value - key @ faded)
    return memory


def noise(length: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A memory, unit keys, values, strengths and decays of two rows of three heads."""
    generator = torch.Generator().manual_seed(length)
    start = torch.randn(2, 3, size, size, generator=generator, dtype=dtype)
    keys, values = torch.randn(2, 2, 3, length, size, generator=generator, dtype=dtype)
    write, decay = torch.rand(2, 2, 3, length, generator=generator, dtype=dtype)
    return start, torch.nn.functional.normalize(keys, dim=-1), values, write, decay.log()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_chunks_of_the_delta_rule_equal_single_tokens(length: int) -> None:
    start, keys, values, write, log_decay = noise(length, size=8)
    for decay in (log_decay * 0, log_decay * 0.01, log_decay, log_decay * 100):
        expected = one_by_one(start, keys, values, write, decay)
        for chunk in (1, 7, 64):
            got = gated_delta_rule(start, keys, values, write, decay, chunk)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_equal_keys_written_at_full_strength_leave_the_last_value() -> None:
    start, keys, values, write, _ = noise(64, size=8, dtype=torch.float32)
    keys = keys[:, :, :1].expand_as(keys)
    got = gated_delta_rule(start * 0, keys, values, torch.ones_like(write), torch.zeros_like(write))
    torch.testing.assert_close(keys[:, :, :1] @ got, values[:, :, -1:], rtol=1e-5, atol=1e-5)


def test_a_decay_that_forgets_everything_gives_finite_gradients() -> None:
    inputs = [x.requires_grad_(True) for x in noise(130, size=4, dtype=torch.float32)]
    start, keys, values, write, log_decay = inputs
    got = gated_delta_rule(start, keys, values, write, log_decay * 1000)
    for gradient in torch.autograd.grad(got.sum(), inputs):
        assert gradient.isfinite().all()


def test_a_million_tokens_do_not_grow_what_is_stored() -> None:
    generator = torch.Generator().manual_seed(2)
    stored = torch.zeros(1, 1, 16, 16)
    for _ in range(62):
        keys, values = torch.randn(2, 1, 1, 16_384, 16, generator=generator)
        write = torch.rand(1, 1, 16_384, generator=generator)
        stored = gated_delta_rule(stored, torch.nn.functional.normalize(keys, dim=-1), values, write, write * 0)
        assert stored.norm() < 40
