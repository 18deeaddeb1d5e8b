"""What `infini` returns: the paper's equations on small numbers, its gate, and the delta rule however the text is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models.attention import Asked, Beside
from models.config import ModelConfig
from models.errors import ConfigError
from models.memory.base import Evicted
from models.memory.delta_rule import gated_delta_rule
from models.memory.infini import MECHANISM, GatedDeltaInfini, Infini, InfiniConfig, feature
from models.state import MemoryState, TensorSpec, spec_nbytes
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import build, random_tokens, read, window_config

MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    trained_context=512,
    tie_word_embeddings=True,
)
Pair = tuple[Sequence[float], Sequence[float]]
HALF = -math.log(2)  # a feature of one half
WIDE = 40.0  # a gate that leaves nothing to the ring


def settings(**changes: Any) -> InfiniConfig:
    return InfiniConfig(**{"window": 32, "segment": 16, "sinks": 0, "gate_init": WIDE, **changes})


def memory(**changes: Any) -> Infini:
    built = MECHANISM.build(MODEL, settings(**changes), torch.float64)
    assert isinstance(built, Infini)
    return built.requires_grad_(False)


def write(infini: Infini, state: MemoryState, *segments: Sequence[Pair], layer: int = 0) -> None:
    """Fold segments of any length into both key/value heads."""
    start = int(infini.config.sinks)
    for segment in segments:
        keys, values = (torch.tensor([pair[side] for pair in segment], dtype=torch.float64) for side in (0, 1))
        fold(infini, state, keys.expand(1, 2, -1, -1), values.expand(1, 2, -1, -1), start, layer)
        start += len(segment)


def fold(
    infini: Infini,
    state: MemoryState,
    keys: Tensor,
    values: Tensor,
    start: int = 0,
    layer: int = 0,
    counted: Tensor | None = None,
) -> None:
    place = start + torch.arange(keys.shape[2])[None]
    evicted = Evicted(
        keys=keys,
        values=values,
        tokens=place.to(torch.int32),
        starts=torch.tensor([start]),
        counted=(place >= infini.config.sinks) if counted is None else counted.expand(keys.shape[0], keys.shape[2]),
    )
    infini.fold(layer, state, evicted)


def ask(
    infini: Infini, state: MemoryState, *query: float, folded: Sequence[int] = (16,), layer: int = 0
) -> Beside | None:
    """Every query head asks the same."""
    queries = torch.tensor(query, dtype=torch.float64).expand(len(folded), 2, 2, 1, -1)
    turn = torch.zeros(1, 1, 1, 1)
    found = infini.read(layer, state, Asked(queries, queries, turn, turn, list(folded), list(folded)))
    assert found is None or isinstance(found, Beside)
    return found


def answer(infini: Infini, state: MemoryState, *query: float) -> list[float]:
    """What the memory returns, which is the same for every head."""
    found = ask(infini, state, *query)
    assert found is not None
    assert (found.out == found.out[:, :1, :1]).all()
    values: list[float] = found.out[0, 0, 0, 0].tolist()
    return values


def started(infini: Infini) -> MemoryState:
    return MemoryState.empty(infini.spec(), 1)


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


def test_unit_keys_are_written_by_their_strength() -> None:
    infini = memory(rule="gated_delta", write_init=0.75, decay_init=1e-9)
    state = started(infini)
    write(infini, state, [((3, 0), (4, 8)), ((0, -5), (1, 1))])
    assert answer(infini, state, 0.1, 0) == pytest.approx([3, 6])
    assert answer(infini, state, 0, -7) == pytest.approx([0.75, 0.75])
    write(infini, state, [((9, 0), (4, 8))])
    assert answer(infini, state, 1, 0) == pytest.approx([3.75, 7.5])
    write(infini, state, [((9, 0), (0, 0))])
    assert answer(infini, state, 1, 0) == pytest.approx([3.75 / 4, 7.5 / 4])
    assert answer(infini, state, 0, -1) == pytest.approx([0.75, 0.75])


def test_all_that_is_stored_fades_with_every_token() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=0.25)
    state = started(infini)
    write(infini, state, [((1, 0), (4, 8)), *[((0, 1), (0, 0))] * 3])
    assert answer(infini, state, 1, 0) == pytest.approx([2 * 0.75**3, 4 * 0.75**3])


def test_strength_and_decay_are_learned_from_key_and_value() -> None:
    infini = memory(rule="gated_delta", write_init=0.5, decay_init=1e-9)
    assert isinstance(infini, GatedDeltaInfini)
    infini.write_weight[0, :] = torch.tensor([0, 0, 50.0, 0])
    infini.decay_weight[0, :] = torch.tensor([0, 50.0, 0, 0])
    state = started(infini)
    write(infini, state, [((1, 0), (1, 5)), ((1, 0), (-1, 7))])
    assert answer(infini, state, 1, 0) == pytest.approx([1, 5])  # the first value opens the write, the second shuts it
    write(infini, state, [((0, 1), (-1, 0))])
    assert answer(infini, state, 1, 0) == pytest.approx([0, 0], abs=1e-9)


def test_every_query_head_reads_the_memory_of_its_own_group() -> None:
    for rule in ("linear", "gated_delta"):
        infini = memory(rule=rule)
        state = started(infini)
        keys = torch.ones(1, 2, 16, 2, dtype=torch.float64)
        fold(infini, state, keys, keys * torch.tensor([2.0, 7.0])[None, :, None, None])
        found = ask(infini, state, 1, 1)
        assert found is not None
        assert found.out[0, :, :, 0, 0].round().tolist() == [[2, 2], [7, 7]]
        infini.gate[0] = torch.tensor([-WIDE, 0, WIDE, 0])  # by query head: (group 0: 0, 1; group 1: 2, 3)
        found = ask(infini, state, 1, 1)
        assert found is not None
        assert found.gate is not None
        assert found.gate[0, :, :, 0, 0].tolist() == [[pytest.approx(0), 0.5], [pytest.approx(1), 0.5]]


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_there_is_nothing_to_read_before_a_token_other_than_a_sink_was_folded(rule: str) -> None:
    infini = memory(rule=rule, sinks=16, layers=(1,))
    state = started(infini)
    ones = torch.ones(1, 2, 16, 2, dtype=torch.float64)
    fold(infini, state, ones, ones, layer=1)
    assert not any(tensor.any() for tensor in state.tensors().values())
    assert ask(infini, state, 1, 1, folded=(16,), layer=1) is None
    assert ask(infini, state, 1, 1, folded=(32,), layer=0) is None
    assert ask(infini, state, 1, 1, folded=(32,), layer=1) is not None


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_a_row_that_has_folded_nothing_is_told_apart_and_its_answer_is_finite(rule: str) -> None:
    infini = memory(rule=rule)
    state = MemoryState.empty(infini.spec(), 2)
    ones = torch.ones(1, 2, 16, 2, dtype=torch.float64)
    fold(infini, state.select([1]), ones, ones)
    found = ask(infini, state, 0, 0, folded=(0, 16))
    assert found is not None
    assert found.filled is not None
    assert found.filled.tolist() == [False, True]
    assert found.out.isfinite().all()
    assert not found.out[0].any()
    both = ask(infini, state, 0, 0, folded=(16, 16))
    assert both is not None
    assert both.filled is None


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_gradients_are_finite_where_nothing_is_stored_and_where_keys_are_zero(rule: str) -> None:
    infini = memory(rule=rule)
    for parameter in infini.parameters():
        parameter.requires_grad_(True)
    state = UnrolledState.start({**infini.spec(), "position": TensorSpec((), torch.int64)}, 2)
    keys = torch.zeros(2, 2, 16, 2, dtype=torch.float64, requires_grad=True)
    fold(infini, state, keys, keys + 1, counted=torch.tensor([[False], [True]]))  # nothing of the first row
    queries = torch.zeros(2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    turn = torch.zeros(1, 1, 1, 1)
    found = infini.read(0, state, Asked(queries, queries, turn, turn, [0, 16], [0, 16]))
    assert isinstance(found, Beside)
    assert found.gate is not None
    wanted = [keys, queries, *infini.parameters()]
    for gradient in torch.autograd.grad((found.out * found.gate).sum(), wanted, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("rule", ["linear", "delta", "gated_delta"])
def test_a_shut_gate_is_the_window_to_the_last_bit(checkpoint: Checkpoint, rule: str) -> None:
    shut = build(checkpoint, settings(rule=rule, sinks=4, gate_init=-200.0))
    plain = build(checkpoint, window_config())
    tokens = random_tokens(shut, 150)
    assert torch.equal(read(shut, tokens, (50,))[0], read(plain, tokens, (50,))[0])


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
        ({"decay_init": 0.0}, "decay_init must lie between"),
        ({"decay_init": 1.0}, "decay_init must lie between"),
        ({"window": 20}, "multiple of the segment"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        settings(**changes)


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers must lie between 0 and 1"):
        memory(layers=(0, 2))
