"""What `infini` stores and returns: the paper's equations on small numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from models.config import ModelConfig
from models.errors import ConfigError
from models.memory.infini import MECHANISM, feature
from models.state import spec_nbytes
from models.weights.checkpoint import Checkpoint
from tests.models.memory.small_infini import HALF, answer, ask, fold, memory, settings, started, write
from tests.models.sessions import build, random_tokens, read


def test_the_first_segment_is_written_as_it_is() -> None:
    for rule in ("linear", "delta"):
        infini = memory(rule=rule)
        state = started(infini)
        write(infini, state, [((0, 1), (4, 8)), ((HALF, 0), (2, -2))])
        # Features (1, 2) and (1/2, 1).
        assert state.read("infini_memory", 0)[0, 0].tolist() == [[5, 7], [10, 14]]
        assert state.read("infini_norm", 0)[0, 0].tolist() == [1.5, 3]
        assert not state.read("infini_memory", 1).any()
        assert answer(infini, state, 1, 0) == pytest.approx([(2 * 5 + 10) / 6, (2 * 7 + 14) / 6])


def test_what_is_known_already_is_not_written_again() -> None:
    infini = memory(rule="delta")
    state = started(infini)
    write(infini, state, [((0, 1), (4, 8))], [((0, 0), (6, 6))])
    # The second key has features (1, 1) and finds (4, 8): (2, -2) is added.
    expected = torch.tensor([[6, 6], [10, 14]], dtype=torch.float64)
    torch.testing.assert_close(state.read("infini_memory", 0)[0, 0], expected)
    assert state.read("infini_norm", 0)[0, 0].tolist() == [2, 3]


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_one_pair_alone_is_the_answer_to_every_query(rule: str) -> None:
    infini = memory(rule=rule)
    state = started(infini)
    write(infini, state, [((3, -1), (4, -8))])
    for query in ((0, 0), (3, -1), (-20, 5)):
        assert answer(infini, state, *query) == pytest.approx([4, -8])


@pytest.mark.parametrize(
    ("rule", "normalised", "expected"),
    [
        ("linear", False, (3, 4)),  # the mean of both
        ("delta", False, (2, 0)),  # the new value, but over the weight of both
        ("delta", True, (4, 0)),
    ],
)
def test_a_key_that_is_written_again_with_another_value(rule: str, normalised: bool, expected: Sequence[float]) -> None:
    infini = memory(rule=rule, normalised=normalised)
    state = started(infini)
    write(infini, state, [((1, -2), (2, 8))], [((1, -2), (4, 0))])
    assert answer(infini, state, 1, -2) == pytest.approx(expected)


def test_a_text_that_repeats_keeps_its_weight_if_normalised() -> None:
    segment = [((1, -2), (2, 8)), ((-1, 0.5), (1, 0))]
    infini = memory(normalised=True)
    state = started(infini)
    write(infini, state, *[segment] * 40)
    assert answer(infini, state, 1, -2) == pytest.approx([2, 8], rel=0.05)
    once = memory(rule="linear")
    other = started(once)
    write(once, other, segment)
    assert torch.equal(state.read("infini_norm", 0), other.read("infini_norm", 0))


def test_keys_that_outgrow_the_normaliser_do_not_blow_it_up() -> None:
    generator = torch.Generator().manual_seed(0)
    infini = memory(normalised=True)
    state = started(infini)
    for turn in range(300):
        scale = 0.1 if turn == 0 else 30
        keys, values = torch.randn(2, 1, 2, 16, 2, generator=generator, dtype=torch.float64)
        fold(infini, state, keys * scale, values)
    found = ask(infini, state, 1, 0)
    assert found is not None
    assert found.out.abs().max() < 20
    assert state.read("infini_memory").abs().max() < 1e5


def test_no_more_is_taken_out_than_there_is() -> None:
    infini = memory(normalised=True)
    state = started(infini)
    state.write("infini_memory", torch.eye(2, dtype=torch.float64).expand(1, 2, 2, 2), 0)
    state.write("infini_norm", torch.tensor([37.867, 0.006], dtype=torch.float64), 0)
    # The first and the last key lie in a direction that the normaliser hardly knows, and partly take out the same.
    features = torch.tensor([[1.4544, 5.9315], [0.5949, 1.1353], [0.0088, 1.9331]], dtype=torch.float64)
    keys = torch.where(features > 1, features - 1, features.log()).expand(1, 2, -1, -1)
    fold(infini, state, keys, torch.zeros_like(keys))
    left = torch.linalg.eigvalsh(state.read("infini_memory", 0)[0, 0])
    assert left.min() >= 0
    assert left.max() <= 1


@pytest.mark.parametrize(("rule", "same"), [("linear", True), ("delta", False), ("gated_delta", True)])
def test_only_the_delta_rule_of_the_paper_depends_on_the_length_of_a_fold(rule: str, same: bool) -> None:
    keys, values = torch.randn(2, 1, 2, 48, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    infini = memory(rule=rule)
    whole, cut = started(infini), started(infini)
    fold(infini, whole, keys, values)
    for begin, end in ((0, 5), (5, 40), (40, 48)):
        fold(infini, cut, keys[:, :, begin:end], values[:, :, begin:end], start=begin)
    apart = (whole.read("infini_memory") - cut.read("infini_memory")).abs().max()
    assert (apart < 1e-12) == same


def test_the_normaliser_has_every_evicted_key_once_and_no_sink(checkpoint: Checkpoint) -> None:
    """Keys of layer 0 depend on their own token alone, so that they can be had without any memory."""
    decoder = build(checkpoint, settings(rule="linear", sinks=4, gate_init=0.0), torch.float64)
    layer = decoder.weights.layers[0]
    tokens = random_tokens(decoder, 150)
    embedded = decoder.weights.embedding[torch.tensor([tokens])]
    _, keys, values = layer.project(embedded)  # type: ignore[operator]
    for length in (48, 63, 64, 150):
        state = read(decoder, tokens[:length], (13,))[1]
        gone = slice(4, (length - 32) // 16 * 16)
        features = feature(keys[0, :, gone])
        torch.testing.assert_close(state.read("infini_norm", 0)[0], features.sum(dim=1))
        product = features.transpose(1, 2) @ values[0, :, gone]
        torch.testing.assert_close(state.read("infini_memory", 0)[0], product)


def test_features_stay_positive_far_below_zero() -> None:
    x = torch.tensor([-80.0, -18.0, -1.0, 0.0, 3.0], requires_grad=True)
    assert feature(x).tolist() == pytest.approx([math.exp(-80), math.exp(-18), math.exp(-1), 1, 4], rel=1e-5)
    (slope,) = torch.autograd.grad(feature(x).sum(), x)
    assert slope.tolist() == pytest.approx([math.exp(-80), math.exp(-18), math.exp(-1), 1, 1], rel=1e-5)


def test_the_state_has_the_numbers_that_the_paper_counts() -> None:
    """1.6 million for 12 layers with 8 heads of 128, whatever the length of the text."""
    model = ModelConfig(32, 1024, 64, 12, 8, 8, 128, 1e-5, 1e4, 512, True)
    spec = MECHANISM.build(model, settings(rule="delta"), torch.bfloat16).spec()
    assert spec_nbytes(spec) == 4 * 12 * 8 * (128 * 128 + 128) == 4 * 1_585_152


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rule": "hebb"}, "linear, delta or gated_delta"),
        ({"rule": "linear", "normalised": True}, "normalised belongs to the rule delta"),
        ({"rule": "gated_delta", "normalised": True}, "normalised belongs to the rule delta"),
        ({"gate_init": math.nan}, "gate_init"),
        ({"gate_init": math.inf}, "gate_init"),
        ({"write_init": 0.0}, "write_init must lie between"),
        ({"write_init": 1.0}, "write_init must lie between"),
        ({"decay_init": -0.1}, "decay_init must be 0"),
        ({"decay_init": 1.0}, "decay_init must be 0"),
        ({"decay_init": math.nan}, "decay_init must be 0"),
        ({"write_floor": 1.0}, "write_floor must be"),
        ({"write_floor": -0.1}, "write_floor must be"),
        ({"write_cost": -1.0}, "write_cost must be"),
        ({"write_cost": math.inf}, "write_cost must be"),
        ({"waste_cost": -1.0}, "waste_cost must be"),
        ({"window": 20}, "multiple of the segment"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        settings(**changes)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers must lie between 0 and 1"):
        memory(layers=(0, 2))
