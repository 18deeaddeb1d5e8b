"""What the search finds, what it gives, and that memories are constants in the order in which they came."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.asked import Asked, Beside
from models.config import ModelConfig
from models.errors import ConfigError
from models.memory.memorizing import Memorizing, MemorizingConfig
from models.memory.slots import SlotsConfig
from models.state import MemoryState, TensorSpec
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.evictions import evicted
from tests.models.sessions import ALL_HEADS, build, feed, random_tokens, read, window_config

SIZE, SEGMENT, HEADS, GROUP = 4, 8, 2, 3
MODEL = ModelConfig(32, 16, 16, 2, HEADS * GROUP, HEADS, SIZE, 1e-5, 1e4, 512, True)


def memory(dtype: torch.dtype = torch.float64, **changes: Any) -> Memorizing:
    small = {"window": 16, "segment": SEGMENT, "sinks": 0, "entries": 20, "top_k": 3}
    return Memorizing(MODEL, MemorizingConfig(**{**small, **changes}), dtype)


def text(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (K, n, d)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (HEADS, count, SIZE)
    keys = torch.randn(shape, generator=generator, dtype=torch.float64)
    return keys, torch.randn(shape, generator=generator, dtype=torch.float64)


def fold_all(memorizing: Memorizing, keys: Tensor, values: Tensor) -> MemoryState:
    state = MemoryState.empty(memorizing.spec(), 1)
    for start in range(0, keys.shape[1], SEGMENT):
        span = slice(start, start + SEGMENT)
        gone = evicted(keys[None, :, span], values[None, :, span], start, sinks=memorizing.config.sinks)
        memorizing.fold(0, state, gone)
    return state


def asked(*folded: int, count: int = 2) -> Asked:
    """Queries, and no rotation between near and far."""
    generator = torch.Generator().manual_seed(5)
    plain = torch.randn(len(folded), HEADS, GROUP, count, SIZE, generator=generator, dtype=torch.float64)
    still = torch.ones(1, 1, 1, SIZE // 2, dtype=torch.float64)
    return Asked(plain, plain, still, torch.zeros_like(still), list(folded), list(folded))


def found(memorizing: Memorizing, state: MemoryState, question: Asked) -> Beside:
    beside = memorizing.read(0, state, question)
    assert isinstance(beside, Beside)
    return beside


@pytest.mark.parametrize("gate", ["softmax", "learned"])
def test_each_query_head_gets_the_softmax_over_its_own_nearest(gate: str) -> None:
    memorizing = memory(gate=gate)
    keys, values = text(16)
    question = asked(16)
    beside = found(memorizing, fold_all(memorizing, keys, values), question)
    for head in range(HEADS):
        for group in range(GROUP):
            for turn in range(2):
                query = question.plain[0, head, group, turn]
                scores = keys[head] @ query / SIZE**0.5
                if gate == "learned":
                    scores = 20 * torch.cosine_similarity(keys[head], query[None], dim=-1)
                best = scores.sort(descending=True).indices[:3]
                wanted = scores[best].softmax(0) @ values[head, best]
                torch.testing.assert_close(beside.out[0, head, group, turn], wanted, rtol=0, atol=1e-12)
                if beside.mass is not None:
                    assert float(beside.mass[0, head, group, turn]) == pytest.approx(float(scores[best].logsumexp(0)))
    assert (beside.mass is None) == (gate == "learned")


@pytest.mark.parametrize("sinks", [0, 3])
def test_the_last_m_tokens_are_kept_and_no_sinks(sinks: int) -> None:
    memorizing = memory(entries=20, sinks=sinks)
    keys, values = text(48)
    state = fold_all(memorizing, keys, values)
    kept = state.read("memorized_keys")[0, 0]
    for head in range(HEADS):
        places = torch.cdist(kept[head], keys[head]).argmin(1)
        assert sorted(places.tolist()) == list(range(28, 48))
        assert torch.equal(kept[head], keys[head, places])
        assert torch.equal(state.read("memorized_values")[0, 0, head], values[head, places])


def test_before_it_is_full_every_token_but_the_sinks_is_there_once() -> None:
    memorizing = memory(entries=20, sinks=3, top_k=20)
    keys, values = text(8)
    state = fold_all(memorizing, keys, values)
    beside = found(memorizing, state, asked(8))
    scores = torch.einsum("hgtd,hnd->hgtn", asked(8).plain[0], keys[:, 3:]) / SIZE**0.5
    torch.testing.assert_close(beside.out[0], scores.softmax(-1) @ values[:, None, 3:], rtol=0, atol=1e-12)
    assert memorizing.read(0, state, asked(0)) is None


def test_rows_with_less_find_less_and_rows_with_nothing_keep_to_the_ring() -> None:
    memorizing = memory(top_k=12)
    keys, values = text(16)
    full = fold_all(memorizing, keys, values)
    short = fold_all(memorizing, keys[:, :8], values[:, :8])
    state = MemoryState.empty(memorizing.spec(), 3)
    state.select([1]).copy_from(short)
    state.select([2]).copy_from(full)
    beside = found(memorizing, state, asked(0, 8, 16))
    assert beside.filled is not None
    assert beside.filled.tolist() == [False, True, True]
    assert beside.out.isfinite().all()
    assert beside.mass is not None
    for row, alone, count in ((1, short, 8), (2, full, 16)):
        question = replace(asked(0, 8, 16), folded=[count])
        question = replace(question, plain=question.plain[row : row + 1], near=question.near[row : row + 1])
        wanted = found(memorizing, alone, question)
        assert wanted.mass is not None
        torch.testing.assert_close(beside.out[row], wanted.out[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(beside.mass[row], wanted.mass[0], rtol=0, atol=1e-14)


def test_no_gradient_of_a_row_with_nothing_is_nan() -> None:
    memorizing = memory(gate="learned")
    question = asked(0, 16)
    question.plain.requires_grad_()
    state = MemoryState.empty(memorizing.spec(), 2)
    state.select([1]).copy_from(fold_all(memorizing, *text(16)))
    beside = found(memorizing, state, question)
    assert beside.filled is not None
    torch.where(beside.filled[:, None, None, None, None], beside.out, 0).sum().backward()
    for gradient in (question.plain.grad, memorizing.log_scale.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gate", ["softmax", "learned"])
def test_memories_are_constants(gate: str) -> None:
    memorizing = memory(gate=gate)
    keys, values = (tensor.requires_grad_() for tensor in text(SEGMENT))
    state = UnrolledState.start({"position": TensorSpec((), torch.int64), **memorizing.spec()}, 1)
    memorizing.fold(0, state, evicted(keys[None], values[None], 0))
    assert not any(tensor.requires_grad for tensor in state.tensors().values())


def test_long_questions_are_answered_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    memorizing = memory()
    state = fold_all(memorizing, *text(16))
    whole = found(memorizing, state, asked(16, count=11))
    monkeypatch.setattr("models.memory.nearest._SCORES", HEADS * GROUP * 16 * 3)
    parts = found(memorizing, state, asked(16, count=11))
    assert whole.mass is not None
    assert parts.mass is not None
    torch.testing.assert_close(parts.out, whole.out, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.mass, whole.mass, rtol=0, atol=1e-14)


def test_keys_of_the_learned_gate_are_of_length_one_and_one_of_zeros_stays_zeros() -> None:
    keys, values = text(8)
    keys[0, 3] = 0
    kept = fold_all(memory(gate="learned"), keys, values).read("memorized_keys")[0, 0, :, :8]
    wanted = torch.ones(HEADS, 8, dtype=torch.float64)
    wanted[0, 3] = 0
    torch.testing.assert_close(kept.norm(dim=-1), wanted, rtol=0, atol=1e-14)


def test_bfloat16_memories_are_searched_in_float32() -> None:
    """Two keys whose scores bfloat16 could not tell apart: 100.2 and 100.4 are both 100.5 there."""
    memorizing = memory(torch.bfloat16, top_k=1)
    keys = torch.zeros(HEADS, 8, SIZE)
    keys[:, 2], keys[:, 5] = torch.tensor([100, 0.25, 0, 0]), torch.tensor([100, 0.5, 0, 0])
    values = torch.arange(8.0)[:, None].expand(HEADS, 8, SIZE).bfloat16()
    question = asked(8)
    plain = torch.tensor([2, 1, 0, 0], dtype=torch.bfloat16).expand(1, HEADS, GROUP, 2, SIZE)
    beside = found(memorizing, fold_all(memorizing, keys, values), replace(question, plain=plain, near=plain))
    assert beside.out.dtype == torch.float32
    assert (beside.out == 5).all()


def test_with_room_for_all_it_is_one_softmax_over_ring_and_memory(checkpoint: Checkpoint) -> None:
    """k = M = everything evicted: the same as slots in every head that never have to choose."""
    ours = build(checkpoint, MemorizingConfig(32, 16, 4, entries=200, top_k=200))
    theirs = build(checkpoint, SlotsConfig(32, 16, 4, heads=ALL_HEADS, slots=200, slot_dtype="same"))
    tokens = random_tokens(ours, 150)
    torch.testing.assert_close(read(ours, tokens)[0], read(theirs, tokens)[0], rtol=1e-3, atol=1e-3)


def test_a_closed_gate_leaves_the_ring_alone_and_an_open_one_does_not(checkpoint: Checkpoint) -> None:
    tokens = random_tokens(build(checkpoint, window_config()), 120)
    plain, _ = read(build(checkpoint, window_config(), torch.float64), tokens)
    apart = {}
    for gate_init in (-10.0, -12.302585092994046, 0.0):
        config = MemorizingConfig(32, 16, 4, entries=50, gate="learned", gate_init=gate_init)
        apart[gate_init] = float((read(build(checkpoint, config, torch.float64), tokens)[0] - plain).abs().max())
    closed, tighter, open_ = apart.values()
    assert 0 < closed < 1e-2
    assert tighter == pytest.approx(closed / 10, rel=0.05)
    assert open_ > 0.1


def test_the_gate_learns_from_a_task(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, MemorizingConfig(32, 16, 4, layers=(2,), entries=50, gate="learned", gate_init=-2))
    decoder.memory.requires_grad_(True)
    logits = feed(decoder, UnrolledState.start(decoder.spec(), 1), random_tokens(decoder, 70))
    gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), list(decoder.memory.parameters()))
    for gradient in gradients:
        assert gradient.shape == (1, decoder.config.num_heads)
        assert (gradient != 0).all()


def test_the_report_counts_entries(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, MemorizingConfig(32, 16, 4, layers=(3,), entries=50))
    used = []
    for count in (47, 48, 70, 200):
        report = decoder.memory.report(read(decoder, random_tokens(decoder, count))[1])
        used.append(report.layers[0].used)
        assert (report.layers[0].layer, report.layers[0].heads, report.layers[0].slots) == (3, (0, 1), 50)
    assert used == [0, 2 * 12, 2 * 28, 2 * 50]


def test_parameters_are_there_for_the_learned_gate_alone_and_wide() -> None:
    assert not list(memory().parameters())
    learned = memory(torch.bfloat16, gate="learned", layers=(1,)).requires_grad_(False).state_dict()
    assert {name: (tuple(p.shape), p.dtype) for name, p in learned.items()} == {
        "gate": ((1, 6), torch.float32),
        "log_scale": ((1, 6), torch.float32),
    }
    assert learned["log_scale"].exp().tolist() == [[pytest.approx(20)] * 6]
    assert math.isclose(float(learned["gate"].sigmoid()[0, 0]), 4.54e-5, rel_tol=1e-3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"entries": 7}, "room for one segment"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 21}, "top_k"),
        ({"gate": "tanh"}, "softmax or learned"),
        ({"scale_init": 0.0}, "scale_init"),
        ({"layers": (2,)}, "layers must lie between"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        memory(**changes)
