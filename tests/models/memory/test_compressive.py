"""Compression on numbers worked out by hand, the order of its queue, its loss, and how far it reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.asked import Far
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import Layer
from models.memory.compressive import Compressive, CompressiveConfig
from models.memory.transformer_xl import TransformerXLConfig
from models.state import MemoryState, spec_nbytes
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.evictions import evicted
from tests.models.sessions import asked_after, build, feed, random_tokens, read, window_config

SIZE, SEGMENT, HEADS = 4, 8, 2
MODEL = ModelConfig(32, 16, 16, 2, 4, HEADS, SIZE, 1e-5, 1e4, 512, True)


def config(**changes: Any) -> CompressiveConfig:
    return CompressiveConfig(**{"window": 16, "segment": SEGMENT, "sinks": 0, "rate": 4, "entries": 5, **changes})


def memory(dtype: torch.dtype = torch.float64, **changes: Any) -> Compressive:
    return Compressive(MODEL, config(**changes), dtype)


def fold(
    compressive: Compressive,
    state: MemoryState,
    start: int,
    keys: Tensor,
    values: Tensor,
    queries: Tensor | None = None,
) -> None:
    """Evict the segment that begins at `start` of a text's keys and values (K, n, d)."""
    span = slice(start, start + SEGMENT)
    gone = evicted(keys[None, :, span], values[None, :, span], start, sinks=compressive.config.sinks, queries=queries)
    compressive.fold(0, state, gone)


def text(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (HEADS, count, SIZE)
    keys = torch.randn(shape, generator=generator, dtype=torch.float64)
    return keys, torch.randn(shape, generator=generator, dtype=torch.float64)


def fold_all(compressive: Compressive, keys: Tensor, values: Tensor) -> MemoryState:
    state = MemoryState.empty(compressive.spec(), 1)
    for start in range(0, keys.shape[1], SEGMENT):
        fold(compressive, state, start, keys, values)
    return state


def seen(compressive: Compressive, state: MemoryState, *folded: int) -> Far:
    far = compressive.read(0, state, asked_after(*folded))
    assert isinstance(far, Far)
    return far


@pytest.mark.parametrize(("compression", "expected"), [("mean", 2.5), ("max", 4.0), ("conv", 2.5)])
def test_a_group_of_four_becomes_one(compression: str, expected: float) -> None:
    compressive = memory(compression=compression)
    keys = torch.arange(1, 9, dtype=torch.float64)[None, :, None].expand(HEADS, -1, SIZE)
    far = seen(compressive, fold_all(compressive, keys, -keys), 8)
    assert torch.equal(far.keys[0, 0, :, 0], torch.tensor([expected, expected + 4], dtype=torch.float64))
    highest = {"mean": -2.5, "max": -1.0, "conv": -2.5}[compression]
    assert torch.equal(far.values[0, 1, :, 3], torch.tensor([highest, highest - 4], dtype=torch.float64))
    assert far.heads == [0, 1]


def test_a_convolution_is_a_matrix_for_each_place_and_head() -> None:
    compressive = memory(compression="conv")
    kernel = torch.zeros_like(compressive.key_kernel)
    kernel[0, 1, 2, 0, 3] = 5  # layer 0, head 1: number 0 of the third token of a group, fivefold, becomes number 3
    compressive.key_kernel.data = kernel
    keys, values = text(8)
    far = seen(compressive, fold_all(compressive, keys, values), 8)
    wanted = torch.zeros(HEADS, 2, SIZE, dtype=torch.float64)
    wanted[1, :, 3] = 5 * keys[1, [2, 6], 0]
    assert torch.equal(far.keys[0], wanted)
    torch.testing.assert_close(far.values[0], values.unflatten(1, (2, 4)).mean(2), rtol=0, atol=1e-14)


def test_in_turns_each_head_begins_with_one_token_of_the_group_and_every_token_has_a_head() -> None:
    compressive = memory(compression="conv", kernels="turns", rate=2, entries=4)
    keys, values = text(8)
    state = fold_all(compressive, keys, values)
    compressive.fold(1, state, evicted(keys[None], values[None], 0, sinks=0))
    for layer, kept in enumerate(([1, 0], [0, 1])):  # by head
        far = compressive.read(layer, state, asked_after(8))
        assert isinstance(far, Far)
        for head, place in enumerate(kept):
            assert torch.equal(far.keys[0, head], keys[head, place::2])
            assert torch.equal(far.values[0, head], values[head, place::2])


def test_the_oldest_entries_make_room() -> None:
    compressive = memory(entries=5)
    keys, values = text(40)
    groups = keys.unflatten(1, (-1, 4)).mean(2)
    far = seen(compressive, fold_all(compressive, keys, values), 40)
    assert far.visible is None
    ours, wanted = far.keys[0, 0], groups[0, -5:]
    nearest = torch.cdist(ours, wanted).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(ours, wanted[nearest], rtol=0, atol=1e-14)


@pytest.mark.parametrize("compression", ["mean", "max", "conv"])
def test_sinks_are_left_out_of_their_group_and_never_seen_alone(compression: str) -> None:
    compressive = memory(compression=compression, sinks=6)
    keys, values = text(8)
    keys[:, :6] += 1000
    far = seen(compressive, fold_all(compressive, keys, values), 8)
    together = keys[:, 6:].amax(1) if compression == "max" else keys[:, 6:].mean(1)
    torch.testing.assert_close(far.keys[0, :, 0], together, rtol=0, atol=1e-13)
    assert far.keys.shape[2] == 1


def test_where_only_sinks_have_left_there_is_nothing_to_see() -> None:
    compressive = memory(sinks=8)
    keys, values = text(16)
    state = fold_all(compressive, keys, values)
    assert compressive.read(0, state, asked_after(8)) is None
    assert seen(compressive, state, 16).keys.shape[2] == 2


def test_rows_see_what_they_have_themselves() -> None:
    far = seen(memory(), MemoryState.empty(memory().spec(), 3), 0, 8, 400)
    assert far.visible is not None
    assert far.visible[:, 1].tolist() == [[False] * 5, [True] * 2 + [False] * 3, [True] * 5]


def test_beyond_the_entries_that_were_taught_scores_are_sharper_and_weigh_together_as_before() -> None:
    compressive = memory(entries=32, sharpen_beyond=4)
    asked = asked_after(8, 16, 64)  # 2, 4 and 16 entries
    asked = replace(asked, plain=torch.ones_like(asked.plain))
    far = compressive.read(0, MemoryState.empty(compressive.spec(), 3), asked)
    assert isinstance(far, Far)
    assert far.query is not None
    assert far.offset is not None
    torch.testing.assert_close(
        far.query / asked.far, torch.tensor([1.0, 1.0, 2.0])[:, None, None, None, None].expand_as(asked.far)
    )
    weighed = far.offset.exp() * torch.tensor([2.0, 4.0, 16.0])[:, None, None, None]
    torch.testing.assert_close(weighed, torch.tensor([2.0, 4.0, 4.0])[:, None, None, None].expand_as(weighed))


def test_as_many_entries_as_were_taught_are_asked_as_ever() -> None:
    compressive = memory(entries=32, sharpen_beyond=4)
    assert seen(compressive, MemoryState.empty(compressive.spec(), 1), 16).query is None


def test_layers_without_the_memory_keep_and_see_nothing() -> None:
    compressive = memory(layers=(1,))
    keys, values = text(16)
    state = fold_all(compressive, keys, values)  # of layer 0
    assert state.read("compressed_keys").shape[1] == 1
    assert not state.read("compressed_keys").any()
    assert compressive.read(0, state, asked_after(16)) is None
    assert compressive.read(1, state, asked_after(16)) is not None


def test_with_rate_one_nothing_is_lost(checkpoint: Checkpoint) -> None:
    """A ring and entries that hold every token show each of them once: without rotation at all, where each lies is no matter."""
    flat = replace(checkpoint.config, rope_theta=1e300)
    still = replace(checkpoint, config=flat)
    small = build(still, CompressiveConfig(32, 16, 4, rate=1, entries=200))
    tokens = random_tokens(small, 150)
    whole = build(still, window_config(window=160, sinks=0))
    # The fastest pair of numbers still turns by one radian a token: nothing is to lie there.
    for decoder in (small, whole):
        for layer in decoder.weights.layers:
            assert isinstance(layer, Layer)
            rows = layer.qkv.data.view(-1, flat.head_dim, flat.hidden_size)
            rows[: flat.num_heads + flat.num_kv_heads, :: flat.head_dim // 2] = 0
    torch.testing.assert_close(read(small, tokens)[0], read(whole, tokens)[0], rtol=1e-4, atol=1e-4)


def queries(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(1, HEADS, 2, count, SIZE, generator=generator, dtype=torch.float64)


def test_the_loss_is_what_attention_to_the_compressed_segment_misses() -> None:
    compressive = memory(compression="conv")
    keys, values = text(8)
    compressive.losses = []
    fold(compressive, MemoryState.empty(compressive.spec(), 1), 0, keys, values, queries())
    (loss,) = compressive.losses
    apart = []
    for head in range(HEADS):
        few = keys[head].unflatten(0, (2, 4)).mean(1), values[head].unflatten(0, (2, 4)).mean(1)
        for query in queries()[0, head].flatten(0, 1):
            answers = [(key @ query / SIZE**0.5).softmax(0) @ value for key, value in ((keys[head], values[head]), few)]
            apart.append(answers[0] - answers[1])
    assert float(loss.detach()) == pytest.approx(float(torch.stack(apart).square().mean()), rel=1e-12)


def test_the_loss_teaches_the_convolution_and_nothing_else() -> None:
    compressive = memory(compression="conv")
    keys, values, asked = *(tensor.requires_grad_() for tensor in text(8)), queries().requires_grad_()
    compressive.losses = []
    fold(compressive, MemoryState.empty(compressive.spec(), 1), 0, keys, values, asked)
    compressive.losses[0].backward()
    assert keys.grad is None
    assert values.grad is None
    assert asked.grad is None
    for kernel in (compressive.key_kernel, compressive.value_kernel):
        assert kernel.grad is not None
        assert kernel.grad[0].abs().sum() > 0
        assert kernel.grad[1].abs().sum() == 0


def test_the_loss_goes_down_when_it_is_followed() -> None:
    compressive = memory(compression="conv")
    keys, values = text(8)
    optimizer = torch.optim.Adam(compressive.parameters(), 1e-2)
    history = []
    for _ in range(60):
        compressive.losses = []
        fold(compressive, MemoryState.empty(compressive.spec(), 1), 0, keys, values, queries())
        optimizer.zero_grad()
        compressive.losses[0].backward()
        optimizer.step()
        history.append(float(compressive.losses[0].detach()))
    assert history[-1] < history[0] / 2


@pytest.mark.parametrize("compression", ["mean", "max"])
def test_what_is_not_learned_has_no_loss(compression: str) -> None:
    compressive = memory(compression=compression)
    compressive.losses = []
    keys, values = text(8)
    fold(compressive, MemoryState.empty(compressive.spec(), 1), 0, keys, values, queries())
    assert compressive.losses == []
    assert not list(compressive.parameters())


def test_a_segment_of_sinks_alone_costs_nothing() -> None:
    compressive = memory(compression="conv", sinks=8)
    compressive.losses = []
    keys, values = text(8)
    fold(compressive, MemoryState.empty(compressive.spec(), 1), 0, keys, values, queries())
    assert float(compressive.losses[0].detach()) == 0
    compressive.losses[0].backward()
    assert compressive.key_kernel.grad is not None
    assert compressive.key_kernel.grad.isfinite().all()


@pytest.mark.parametrize("task_gradient", [True, False])
def test_the_task_reaches_the_convolution_where_it_may(checkpoint: Checkpoint, task_gradient: bool) -> None:
    decoder = build(
        checkpoint, CompressiveConfig(32, 16, 4, compression="conv", entries=40, task_gradient=task_gradient)
    )
    kernel = decoder.memory.get_parameter("key_kernel").requires_grad_(True)
    decoder.weights.embedding.requires_grad_(True)
    logits = feed(decoder, UnrolledState.start(decoder.spec(), 1), random_tokens(decoder, 80))
    (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), kernel, allow_unused=True)
    assert (gradient is not None) == task_gradient


def test_the_report_counts_entries(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, CompressiveConfig(32, 16, 4, layers=(1, 2), entries=10))
    assert [layer.used for layer in decoder.memory.report(decoder.empty_state()).layers] == [0, 0]
    state = read(decoder, random_tokens(decoder, 70))[1]  # 32 evicted: eight groups, of which the first is sinks
    report = decoder.memory.report(state)
    assert [(one.layer, one.heads, one.slots, one.used) for one in report.layers] == [
        (1, (0, 1), 10, 14),
        (2, (0, 1), 10, 14),
    ]
    state = read(decoder, random_tokens(decoder, 200))[1]
    assert [layer.used for layer in decoder.memory.report(state).layers] == [20, 20]


def test_the_same_bytes_reach_almost_c_times_further(checkpoint: Checkpoint) -> None:
    cached = TransformerXLConfig(window=512, segment=16)
    ours = CompressiveConfig.as_large_as(cached, window=16, rate=4)
    assert (ours.window, ours.entries, ours.sinks) == (16, 496, 0)
    assert ours.reach == 16 + 4 * 496 == 2000
    assert ours.reach > 3.9 * cached.reach
    sizes = [spec_nbytes(build(checkpoint, config).spec()) for config in (cached, ours)]
    assert sizes[0] - sizes[1] == 496 * 4  # the token ids that the smaller ring does not keep
    assert CompressiveConfig.as_large_as(MemoryConfig(512, 16), 256, rate=8).sinks == 4
    with pytest.raises(ConfigError, match="room for"):
        CompressiveConfig.as_large_as(cached, window=512)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rate": 3}, "rate"),
        ({"rate": 0}, "rate"),
        ({"entries": 1}, "room for one compressed segment"),
        ({"compression": "median"}, "mean, max or conv"),
        ({"compression": "conv", "kernels": "odd"}, "mean or turns"),
        ({"compression": "max", "kernels": "turns"}, "belong to the compression"),
        ({"sharpen_beyond": 1}, "at least 2 entries"),
        ({"window": 12}, "window"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config(**changes)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers must lie between 0 and 1"):
        memory(layers=(0, 2))
