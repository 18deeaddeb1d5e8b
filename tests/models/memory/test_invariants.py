"""What holds for every memory, whatever it does (docs/memory.md)."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.codec import StateKind, decode_state, encode_state
from models.state import MemoryState, spec_nbytes
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memories import ROWS, Row, each
from tests.models.sessions import (
    assert_same_bits,
    assert_same_state,
    bits,
    build,
    feed,
    open_memory,
    random_tokens,
    read,
    window_config,
)

GATED = {
    name: row
    for name, row in ROWS.items()
    if hasattr(row.config, "gate_init") and getattr(row.config, "gate", "learned") == "learned"
}


@each(ROWS)
def test_a_session_weighs_the_same_after_any_number_of_segments(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    kind = StateKind("model", decoder.memory_fingerprint(), decoder.spec())
    state = decoder.empty_state()
    sizes, saved = {state.nbytes}, set()
    for count in (256, 50, 100):  # from 256 on the header writes the position in as many bytes
        feed(decoder, state, random_tokens(decoder, count))
        sizes.add(state.nbytes)
        saved.add(len(encode_state(state, kind)))
    assert sizes == {spec_nbytes(decoder.spec())}
    assert len(saved) == 1


@each(ROWS)
def test_any_cutting_gives_the_same_session(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    open_memory(decoder.memory)
    tokens = random_tokens(decoder, 150, seed=12)
    logits, whole = read(decoder, tokens)
    for cuts in ((1,), (16,), (7, 50, 1), (31, 2)):
        cut_logits, cut = read(decoder, tokens, cuts)
        assert (logits - cut_logits).abs().max() < 2e-3, cuts
        assert_same_state(whole, cut)


@each(ROWS)
def test_until_the_first_fold_the_model_is_the_base_model(checkpoint: Checkpoint, row: Row) -> None:
    config = row.config
    decoder = build(checkpoint, config)
    open_memory(decoder.memory)
    plain = build(checkpoint, window_config(window=256, segment=16, sinks=0))
    first = config.segment if decoder.memory.follows else config.ring
    tokens = random_tokens(decoder, first)
    torch.testing.assert_close(read(decoder, tokens)[0], read(plain, tokens)[0], rtol=1e-4, atol=1e-4)


@each(GATED)
def test_an_untrained_memory_with_gates_does_the_model_no_harm(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    window = build(
        checkpoint, window_config(window=row.config.window, segment=row.config.segment, sinks=row.config.sinks)
    )
    tokens = random_tokens(decoder, 300)
    ours, plain = read(decoder, tokens)[0].log_softmax(-1), read(window, tokens)[0].log_softmax(-1)
    assert (ours - plain).abs().max() < 5e-3


@each(ROWS)
def test_sessions_in_one_batch_do_not_touch_each_other(checkpoint: Checkpoint, row: Row) -> None:
    """Rows stand at different positions: before, at and behind their first fold, and one in the middle of a segment."""
    decoder = build(checkpoint, row.config)
    open_memory(decoder.memory)
    histories = [random_tokens(decoder, count, seed=count) for count in (3, 47, 48, 95, 130)]
    together = decoder.empty_state(len(histories))
    alone = []
    for index, history in enumerate(histories):
        state = read(decoder, history)[1]
        together.select([index]).copy_from(state)
        alone.append(state)
    more = torch.tensor([random_tokens(decoder, 40, seed=7 + index) for index in range(len(histories))])
    for begin, end in ((0, 1), (1, 2), (2, 40)):
        logits, _ = decoder(more[:, begin:end], together, logits="all")
        for index, state in enumerate(alone):
            expected, _ = decoder(more[index : index + 1, begin:end], state, logits="all")
            assert (logits[index] - expected[0]).abs().max() < 2e-3, (index, begin)
    for index, state in enumerate(alone):
        assert_same_state(together.select([index]), state)


@each(ROWS)
def test_a_saved_session_goes_on_as_one_that_was_never_saved(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    open_memory(decoder.memory)
    kind = StateKind("model", decoder.memory_fingerprint(), decoder.spec())
    tokens = random_tokens(decoder, 120)
    _, state = read(decoder, tokens[:77])
    restored = decode_state(encode_state(state, kind), kind)
    assert_same_bits(bits(state), bits(restored))
    assert torch.equal(feed(decoder, state, tokens[77:]), feed(decoder, restored, tokens[77:]))


@each(ROWS)
def test_a_fork_has_its_own_future(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    open_memory(decoder.memory)
    _, parent = read(decoder, random_tokens(decoder, 90))
    before = bits(parent)
    child = parent.clone()
    feed(decoder, child, random_tokens(decoder, 60, seed=5))
    assert_same_bits(before, bits(parent))


@each(ROWS)
def test_the_unrolled_state_of_training_holds_the_same_session(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    open_memory(decoder.memory)
    tokens = random_tokens(decoder, 110)
    logits, state = read(decoder, tokens)
    unrolled = UnrolledState.start(decoder.spec(), 1)
    assert (feed(decoder, unrolled, tokens) - logits).abs().max() < 2e-3
    assert_same_state(state, unrolled.values())


@each(ROWS)
def test_other_parameters_are_another_kind_of_state(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, row.config)
    before = decoder.memory_fingerprint()
    assert before == build(checkpoint, row.config).memory_fingerprint()
    if list(decoder.memory.parameters()):
        open_memory(decoder.memory)
        assert decoder.memory_fingerprint() != before


@each(ROWS)
@torch.inference_mode()
def test_a_hundred_thousand_tokens_of_noise_in_bfloat16(checkpoint: Checkpoint, row: Row) -> None:
    decoder = build(checkpoint, replace(row.config, window=64, segment=64), torch.bfloat16)
    open_memory(decoder.memory)
    generator = torch.Generator().manual_seed(3)
    state: MemoryState = decoder.empty_state()
    for _ in range(100):
        noise = torch.randint(decoder.config.vocab_size, (1, 1_000), generator=generator)
        logits, _ = decoder(noise, state)
        assert logits.isfinite().all()
    for name, tensor in state.tensors().items():
        if tensor.is_floating_point():
            assert not tensor.isnan().any(), name
            assert not tensor.isposinf().any(), name
