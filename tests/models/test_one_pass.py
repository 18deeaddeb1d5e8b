"""Near and far keys in one pass of a fused kernel, for gradients: the same as a softmax that is written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import attention
from models.asked import Far
from models.attention import attend_jointly

SHAPE = (2, 3, 2, 20, 16)  # (B, K, G, T, d)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_(True)


@pytest.mark.parametrize("offset", [None, drawn(*SHAPE[:-1], seed=7)])
def test_long_queries_have_the_answers_and_gradients_of_a_softmax_that_is_laid_out(
    monkeypatch: pytest.MonkeyPatch, offset: Tensor | None
) -> None:
    heads, size = SHAPE[:2], SHAPE[-1]
    query, asking = drawn(*SHAPE, seed=0), drawn(*SHAPE, seed=1)
    near = drawn(*heads, 50, size, seed=2), drawn(*heads, 50, size, seed=3)
    far = drawn(*heads, 33, size, seed=4), drawn(*heads, 33, size, seed=5)
    bias = torch.zeros(2, 1, 40, 50).double()
    bias[0, :, :, 30:] = -torch.inf
    weigh = drawn(*SHAPE, seed=6).detach()
    taken: list[int] = []
    plain = attention._attend_in_one_pass

    def counted(*given: Tensor | Far) -> Tensor:
        taken.append(1)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_attend_in_one_pass", counted)

    def run() -> tuple[Tensor, ...]:
        out = attend_jointly(query, *near, bias, asking, Far([0, 1, 2], *far, offset=offset))
        learned = (query, asking, *near, *far) if offset is None else (query, asking, *near, *far, offset)
        return out, *torch.autograd.grad((out * weigh).sum(), learned)

    fused = run()
    assert taken
    monkeypatch.setattr(attention, "_LONG", 1_000)
    taken.clear()
    for ours, laid_out in zip(fused, run(), strict=True):
        torch.testing.assert_close(ours, laid_out)
    assert not taken


def test_keys_that_are_codes_or_hidden_are_laid_out() -> None:
    keys = torch.zeros(1, 2, 3, 4)
    assert Far([0, 1], keys, keys).plain
    assert not Far([0, 1], keys, keys, visible=torch.ones(1, 2, 3, dtype=torch.bool)).plain
    assert Far([0, 1], keys, keys, offset=torch.ones(1, 2, 1, 1)).plain
    assert not Far([0, 1], keys, keys, key_scale=torch.ones(1, 2, 3)).plain
