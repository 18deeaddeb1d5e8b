"""What the slots keep: the important by leverage, in the order of the text, exactly as a formula says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.errors import ConfigError
from models.memory.slots import Slots, SlotsConfig
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.evictions import evicted
from tests.models.references.slots import SlotsReference
from tests.models.sessions import ALL_HEADS, asked_after, build, random_tokens, read, slots_config

SIZE, SEGMENT = 8, 16
MODEL = ModelConfig(32, 16, 16, 2, 2, 2, SIZE, 1e-5, 1e4, 512, True)


def memory(**changes: Any) -> Slots:
    return Slots(MODEL, slots_config(**{"heads": ((0, 1),), "reach": 0, "sinks": 0, **changes}), torch.float32)


def text(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (2 heads, n, d) of a text; far from centred, as real keys are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=generator)
    return torch.randn(2, count, SIZE, generator=generator) @ mix + 3, torch.randn(2, count, SIZE, generator=generator)


def fold_all(slots: Slots, keys: Tensor, values: Tensor) -> MemoryState:
    """Evict whole segments, as the ring does; what is left behind the last is only looked at."""
    state = MemoryState.empty(slots.spec(), 1)
    for start in range(0, keys.shape[1] - slots.lookahead - SEGMENT + 1, SEGMENT):
        end = start + SEGMENT
        seen, gone = keys[None, :, start : end + slots.lookahead], values[None, :, start:end]
        slots.fold(0, state, evicted(seen, gone, start, sinks=slots.config.sinks))
    return state


@pytest.mark.parametrize("sinks", [0, 4, 16])
def test_statistics_are_those_of_every_evicted_key_but_the_sinks(sinks: int) -> None:
    keys, values = text(160)
    state = fold_all(memory(sinks=sinks, slots=4), keys, values)
    gone = keys[1, sinks:].double().numpy()
    np.testing.assert_allclose(state.read("key_mean")[0, 0].numpy(), gone.mean(0), rtol=1e-4, atol=1e-4)
    scatter = state.read("key_scatter")[0, 0].numpy()
    np.testing.assert_allclose(scatter, np.cov(gone, rowvar=False, bias=True) * len(gone), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(scatter, scatter.T, rtol=1e-5, atol=1e-3)


def test_a_score_is_the_leverage_at_the_time_of_the_fold() -> None:
    keys, values = text(48)
    state = fold_all(memory(slots=48), keys, values)
    for start in range(0, 48, SEGMENT):
        gone = keys[1, : start + SEGMENT].double().numpy()
        inverse = np.linalg.inv(np.cov(gone, rowvar=False, bias=True) + 1e-2 * np.eye(SIZE))
        centred = gone[start:] - gone.mean(0)
        expected = np.einsum("nd,de,ne->n", centred, inverse, centred)
        got = state.read("slot_score")[0, 0, start : start + SEGMENT].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize("reach", [1, 6, 16])
def test_neighbours_lend_their_importance_across_segments(checkpoint: Checkpoint, reach: int) -> None:
    # Keys of layer 0 depend on no memory, so scores can be compared whichever of equal scores was kept.
    config = slots_config(heads=((0, 0), (0, 1)), slots=20, reach=reach)
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, 160)
    _, state = read(decoder, tokens, (33,))
    reference = SlotsReference(checkpoint.config, checkpoint.tensors, config)
    reference.read(tokens)
    for row, head in enumerate(config.heads):
        given = reference.score[head]
        positions, scores = state.read("slot_position")[0, row].tolist(), state.read("slot_score")[0, row].tolist()
        assert scores == pytest.approx([given[position] for position in positions], rel=1e-3)
        best = sorted(given.values(), reverse=True)[: config.slots]
        assert sorted(scores, reverse=True) == pytest.approx(best, rel=1e-3)
        assert positions == sorted(set(positions))


def test_an_outlier_survives_what_comes_after_it_with_its_value_and_token() -> None:
    keys, values = text(640)
    keys[1, 21] += 60
    for slots in (1, 3):
        state = fold_all(memory(slots=slots), keys, values)
        place = state.read("slot_position")[0, 0].tolist().index(21)
        assert torch.equal(state.read("slot_keys")[0, 0, place], keys[1, 21])
        assert torch.equal(state.read("slot_values")[0, 0, place], values[1, 21])
        assert state.read("slot_token")[0, 0, place] == 1021


def test_the_highest_scores_stay_in_the_order_of_the_text() -> None:
    keys, values = text(160)
    everything = fold_all(memory(slots=160), keys, values)
    assert everything.read("slot_position")[0, 0].tolist() == list(range(160))
    best = everything.read("slot_score")[0, 0].topk(10).indices.sort().values
    assert fold_all(memory(slots=10), keys, values).read("slot_position")[0, 0].tolist() == best.tolist()


def test_sinks_are_never_kept_twice() -> None:
    keys, values = text(64)
    keys[1, 2] += 500
    state = fold_all(memory(slots=64, sinks=4), keys, values)
    filled = state.read("slot_score")[0, 0] > -torch.inf
    assert state.read("slot_position")[0, 0][filled].tolist() == list(range(4, 64))
    assert filled[:60].all()
    assert not filled[60:].any()


def test_int8_is_off_by_half_a_step_at_most() -> None:
    keys, values = text(64)
    keys[1, 5], values[1, 6] = 0, 0
    state = fold_all(memory(slots=64, slot_dtype="int8"), keys, values)
    for name, exact in (("key", keys[1]), ("value", values[1])):
        stored, scale = state.read(f"slot_{name}s")[0, 0], state.read(f"slot_{name}_scale")[0, 0]
        assert stored.dtype == torch.int8
        step = exact.abs().amax(-1, keepdim=True) / 127
        assert ((stored * scale[:, None] - exact).abs() <= step * 0.5001 + 1e-9).all()


def test_bf16_slots_hold_the_rounded_values() -> None:
    keys, values = text(32)
    state = fold_all(memory(slots=32, slot_dtype="bf16"), keys, values)
    assert torch.equal(state.read("slot_keys")[0, 0], keys[1].bfloat16())
    assert torch.equal(state.read("slot_values")[0, 0], values[1].bfloat16())


def test_other_layers_and_heads_keep_nothing() -> None:
    slots = memory(heads=((1, 0),), slots=8)
    keys, values = text(32)
    assert (fold_all(slots, keys, values).read("slot_score") == -torch.inf).all()
    assert slots.read(0, MemoryState.empty(slots.spec(), 1), asked_after(32)) is None
    far = slots.read(1, MemoryState.empty(slots.spec(), 1), asked_after(32))
    assert far is not None
    assert far.heads == [0]


@pytest.mark.parametrize("slot_dtype", ["same", "int8"])
def test_empty_slots_are_invisible(checkpoint: Checkpoint, slot_dtype: str) -> None:
    tight = build(checkpoint, slots_config(slots=68 - 4 - 4, slot_dtype=slot_dtype))
    roomy = build(checkpoint, slots_config(slots=500, slot_dtype=slot_dtype))
    tokens = random_tokens(tight, 100)
    torch.testing.assert_close(read(tight, tokens)[0], read(roomy, tokens)[0], rtol=0, atol=1e-4)


def test_the_report_names_what_is_held(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config(heads=ALL_HEADS, slots=500))
    assert decoder.memory.report(decoder.empty_state()).runs == ()
    tokens = random_tokens(decoder, 96)
    report = decoder.memory.report(read(decoder, tokens)[1])
    assert report.runs == ((4, tuple(tokens[4:64])),)
    assert [(layer.layer, layer.heads, layer.slots, layer.used) for layer in report.layers] == [
        (layer, (0, 1), 500, 120) for layer in range(4)
    ]


def test_the_report_leaves_out_what_fewer_than_half_of_the_heads_hold() -> None:
    slots = memory(heads=((0, 0), (0, 1), (1, 0)), slots=3)
    state = MemoryState.empty(slots.spec(), 1)
    held = ((5, 6, 9), (6, 9, 40), (5, 10, 41))
    state.write("slot_position", torch.tensor([held], dtype=torch.int32))
    state.write("slot_token", torch.tensor([held], dtype=torch.int32) + 100)
    state.write("slot_score", torch.ones(1, 3, 3))
    state.write("slot_score", torch.tensor(-torch.inf), 2, 2)
    report = slots.report(state)
    assert report.runs == ((5, (105, 106)), (9, (109,)))
    assert [layer.used for layer in report.layers] == [6, 2]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"heads": ()}, "calibrate"),
        ({"slots": 0}, "slots must be at least 1"),
        ({"reach": -1}, "reach"),
        ({"reach": 17}, "reach"),
        ({"ridge": 0.0}, "ridge"),
        ({"slot_dtype": "int3"}, "slot_dtype"),
        ({"importance": "luck"}, "importance"),
    ],
)
def test_slots_that_cannot_work_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        slots_config(**changes)


@pytest.mark.parametrize("head", [(2, 0), (0, 2), (-1, 0), (0, -1)])
def test_a_head_that_the_model_does_not_have_is_refused(head: tuple[int, int]) -> None:
    config: SlotsConfig = slots_config(heads=((0, 0), head))
    with pytest.raises(ConfigError, match="no key/value head"):
        Slots(MODEL, config, torch.float32)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_the_model_does_not_have_cannot_be_listened_to(layer: int) -> None:
    config = slots_config(heads=((0, 0),), importance="learned", listens=layer)
    with pytest.raises(ConfigError, match="listens must name a layer"):
        Slots(MODEL, config, torch.float32)
