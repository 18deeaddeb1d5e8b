"""The decoder beside transformers and beside the reference; any cutting, any batch, the same session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from models.config import MemoryConfig
from models.layers import Layer
from models.memory.slots import SlotsConfig
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint
from tests.models.memories import infini_config
from tests.models.references.slots import SlotsReference
from tests.models.references.window import Reference
from tests.models.sessions import (
    ALL_HEADS,
    assert_same_bits,
    assert_same_state,
    bits,
    build,
    feed,
    greedy,
    random_tokens,
    read,
    slots_config,
    window_config,
)

LENGTH = 150
# Texts whose greedy continuations are never close calls (0.02 between first and second): rounding cannot turn them.
FIRST_TEXT, SECOND_TEXT = 12, 6
CONFIGS = {
    "window": window_config(),
    "no sinks": window_config(sinks=0),
    "slots": slots_config(),
    "slots bf16": slots_config(slot_dtype="bf16"),
    "slots int8": slots_config(slot_dtype="int8"),
    "slots int4": slots_config(slot_dtype="int4"),
    "slots that foretell": slots_config(importance="learned", listens=2),
}
every_memory = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.mark.parametrize("config", [window_config(window=128, segment=64), slots_config(window=128, segment=64)])
def test_before_the_first_fold_logits_are_those_of_transformers(
    tiny_model: Path, checkpoint: Checkpoint, config: MemoryConfig
) -> None:
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, config.ring)
    theirs = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert (read(decoder, tokens)[0] - expected).abs().max() < 1e-4


def test_before_the_first_fold_every_memory_is_the_same_model(checkpoint: Checkpoint) -> None:
    window, slots = build(checkpoint, window_config()), build(checkpoint, slots_config())
    tokens = random_tokens(window, 49)
    plain, far = read(window, tokens)[0], read(slots, tokens)[0]
    assert torch.equal(plain[:48], far[:48])
    assert not torch.allclose(plain[48], far[48], atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        window_config(),
        window_config(sinks=0),
        window_config(window=48, segment=16, sinks=16),
        slots_config(reach=0),
        slots_config(reach=0, sinks=0, slots=5),
        slots_config(heads=ALL_HEADS, slots=200, reach=6),
        slots_config(heads=((1, 0),), window=16, segment=16, sinks=16, slots=40, reach=0),
    ],
)
def test_equals_the_reference_however_it_is_cut(checkpoint: Checkpoint, config: MemoryConfig) -> None:
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, 114)
    tensors = checkpoint.tensors
    slots = SlotsReference(checkpoint.config, tensors, config) if isinstance(config, SlotsConfig) else None
    with torch.no_grad():
        expected = (slots or Reference(checkpoint.config, tensors, config)).read(tokens)
    for cuts in ((), (1,), (16,), (7, 50, 1)):
        logits, state = read(decoder, tokens, cuts)
        assert (logits - expected).abs().max() < 2e-4, cuts
        if slots is not None:
            positions, scores = state.read("slot_position")[0], state.read("slot_score")[0]
            kept = [row[score > -torch.inf].tolist() for row, score in zip(positions, scores, strict=True)]
            assert kept == [slots.kept[head] for head in sorted(slots.kept)], cuts


@every_memory
def test_any_cutting_gives_the_same_session(checkpoint: Checkpoint, config: MemoryConfig) -> None:
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, LENGTH, seed=FIRST_TEXT)
    logits, whole = read(decoder, tokens)
    continuation = greedy(decoder, whole.clone(), 20)
    tolerance = {"int4": 1.0, "int8": 0.2, "bf16": 0.1}.get(getattr(config, "slot_dtype", ""), 2e-4)

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
    def check(cuts: list[int]) -> None:
        parts, state = read(decoder, tokens, cuts)
        assert_same_state(whole, state)
        assert (parts - logits).abs().max() < tolerance
        assert greedy(decoder, state, 20) == continuation

    check()


@pytest.mark.parametrize("begin", [0, 48, 70])
@pytest.mark.parametrize(
    ("config", "above"),
    [
        (window_config(), 0),
        (infini_config(layers=(0, 2)), 1),
        (slots_config(heads=((0, 1), (1, 0))), 2),
        (slots_config(heads=((0, 1),), importance="learned", listens=2), 1),
        (slots_config(), 0),
    ],
)
def test_what_nothing_will_see_is_not_computed(
    checkpoint: Checkpoint, config: MemoryConfig, above: int, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, begin + 300, seed=FIRST_TEXT)
    _, whole = read(decoder, tokens)
    state = read(decoder, tokens[:begin])[1] if begin else decoder.empty_state()
    computed: list[int] = []
    layer = decoder.weights.layer

    def counted(index: int) -> Layer:
        computed.append(index)
        return layer(index)

    monkeypatch.setattr(decoder.weights, "layer", counted)
    for at in range(begin, len(tokens), 30):
        chunk = tokens[at : at + 30]
        decoder.read_through(torch.tensor([chunk]), state, ahead=len(tokens) - at - len(chunk))
    first = -(-max(0, config.ring - begin) // 30)
    assert computed.count(0) == 10
    for left in range(1, above + 1):  # layers from the last one on
        left_out = (300 - left * config.ring) // 30 - first
        assert computed.count(decoder.config.num_layers - left) == 10 - left_out
    assert computed.count(decoder.config.num_layers - above - 1) == 10
    assert_same_state(whole, state)
    assert greedy(decoder, state, 20) == greedy(decoder, whole, 20)


@every_memory
def test_token_by_token_gives_the_same_session(checkpoint: Checkpoint, config: MemoryConfig) -> None:
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, LENGTH, seed=SECOND_TEXT)
    _, whole = read(decoder, tokens)
    _, single = read(decoder, tokens, (1,))
    assert_same_state(whole, single)
    assert greedy(decoder, whole, 20) == greedy(decoder, single, 20)


@every_memory
@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("before", [(0, 3, 47, 48, 64, 131), (0, 16, 32, 48, 128)], ids=["anywhere", "at borders"])
def test_a_batch_of_sessions_at_different_places_equals_each_alone(
    checkpoint: Checkpoint, config: MemoryConfig, before: tuple[int, ...], length: int
) -> None:
    decoder = build(checkpoint, config)
    alone = []
    for row, count in enumerate(before):
        _, state = read(decoder, random_tokens(decoder, count, seed=row)) if count else (None, decoder.empty_state())
        alone.append(state)
    slab = MemoryState({name: torch.cat([s.read(name) for s in alone]) for name in alone[0].tensors()})
    chunk = torch.tensor([random_tokens(decoder, length, seed=50 + row) for row in range(len(before))])
    together, _ = decoder(chunk, slab, logits="all")
    assert together.isfinite().all()
    for row, state in enumerate(alone):
        expected, _ = decoder(chunk[row : row + 1], state, logits="all")
        assert (together[row] - expected[0]).abs().max() < (0.2 if config in _ROUNDED else 2e-4), f"row {row}"
        assert_same_state(state, slab.select([row]))


_ROUNDED = (CONFIGS["slots int8"], CONFIGS["slots bf16"])


@every_memory
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rows_that_are_not_selected_keep_every_bit(
    checkpoint: Checkpoint, config: MemoryConfig, data: st.DataObject
) -> None:
    decoder = build(checkpoint, config)
    rows = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True))
    length = data.draw(st.integers(1, 60))
    slab = decoder.empty_state(5)
    decoder(torch.tensor([random_tokens(decoder, 70, seed=row) for row in range(5)]), slab)
    untouched, lone = bits(slab), [slab.select([row]).clone() for row in rows]
    chunk = torch.tensor([random_tokens(decoder, length, seed=9 + row) for row in rows])
    logits, _ = decoder(chunk, slab.select(rows))
    others = [row for row in range(5) if row not in rows]
    if others:
        assert_same_bits(bits(slab.select(others)), {name: tensor[others] for name, tensor in untouched.items()})
    for index, row in enumerate(rows):
        expected, _ = decoder(chunk[index : index + 1], lone[index])
        assert (logits[index] - expected[0]).abs().max() < (0.2 if config in _ROUNDED else 2e-4)
        assert_same_state(lone[index], slab.select([row]))


@every_memory
def test_what_a_neighbour_reads_changes_no_bit(checkpoint: Checkpoint, config: MemoryConfig) -> None:
    decoder = build(checkpoint, config)
    mine, yours, others = (random_tokens(decoder, 90, seed=seed) for seed in (1, 2, 3))
    one, two = decoder.empty_state(2), decoder.empty_state(2)
    first, _ = decoder(torch.tensor([mine, yours]), one)
    second, _ = decoder(torch.tensor([mine, others]), two)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert_same_bits(bits(one.select([0])), bits(two.select([0])))


def test_a_clone_is_another_session(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config())
    _, state = read(decoder, random_tokens(decoder, 100))
    kept = bits(state)
    feed(decoder, state.clone(), random_tokens(decoder, 60, seed=1))
    assert_same_bits(bits(state), kept)


def test_last_logits_are_the_last_of_all_and_can_be_read_again(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config())
    tokens = random_tokens(decoder, 60)
    logits, _ = read(decoder, tokens)
    last, state = decoder(torch.tensor([tokens]), decoder.empty_state())
    torch.testing.assert_close(last[0], logits[-1], rtol=0, atol=1e-5)
    assert torch.equal(decoder.read_out(state.read("hidden")), last)
    assert last.dtype == torch.float32


@every_memory
def test_every_tensor_fits_its_spec_after_any_number_of_tokens(checkpoint: Checkpoint, config: MemoryConfig) -> None:
    decoder = build(checkpoint, config)
    state = decoder.empty_state()
    size = state.nbytes
    for _ in range(5):
        feed(decoder, state, random_tokens(decoder, 37))
        assert state.nbytes == size
        for name, spec in decoder.spec().items():
            assert (tuple(state.read(name).shape), state.read(name).dtype) == ((1, *spec.shape), spec.dtype), name


def test_memory_fingerprints_tell_settings_apart(checkpoint: Checkpoint) -> None:
    configs = [*CONFIGS.values(), slots_config(reach=2), slots_config(slots=25), slots_config(heads=((1, 1),))]
    names = {build(checkpoint, config).memory_fingerprint() for config in configs}
    assert len(names) == len(configs)
    assert build(checkpoint, slots_config()).memory_fingerprint() in names
    assert build(checkpoint, slots_config(), torch.bfloat16).memory_fingerprint() not in names
