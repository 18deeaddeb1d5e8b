"""What `feedback` carries from block to block, and who sees it when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.errors import ConfigError
from models.layers import Layer, Rotary, rotate
from models.memory.base import Finished
from models.memory.feedback import MECHANISM, Feedback
from models.weights.checkpoint import Checkpoint
from tests.models.memory.open_feedback import feedback_of, opened, settings
from tests.models.sessions import assert_same_state, build, feed, random_tokens, read, window_config


def test_tokens_never_see_what_the_feedback_took_from_their_own_block(checkpoint: Checkpoint) -> None:
    decoder = opened(checkpoint)
    tokens = random_tokens(decoder, 96)
    logits, _ = read(decoder, tokens)
    for place in (15, 31, 40, 95):
        changed = list(tokens)
        changed[place] = (changed[place] + 1) % decoder.config.vocab_size
        other, _ = read(decoder, changed)
        torch.testing.assert_close(other[:place], logits[:place], rtol=0, atol=1e-5)
        assert (other[place] - logits[place]).abs().max() > 1e-2


def test_it_remembers_what_no_layer_sees_any_more(checkpoint: Checkpoint) -> None:
    """One layer with feedback, no sinks: four layers of a ring of 48 reach back 192 tokens at most."""
    tokens = random_tokens(decoder := opened(checkpoint, torch.float64, sinks=0, layers=(1,)), 320)
    changed = [(token + 1) % decoder.config.vocab_size for token in tokens[:8]] + tokens[8:]
    assert (read(decoder, tokens)[0][-64:] - read(decoder, changed)[0][-64:]).abs().max() > 1e-4
    window = build(checkpoint, window_config(sinks=0), torch.float64)
    assert torch.equal(read(window, tokens)[0][-64:], read(window, changed)[0][-64:])


def test_a_block_is_read_as_soon_as_it_is_finished(checkpoint: Checkpoint) -> None:
    decoder, window = opened(checkpoint), build(checkpoint, window_config())
    tokens = random_tokens(decoder, 20)
    ours, plain = read(decoder, tokens)[0], read(window, tokens)[0]
    assert torch.equal(ours[:16], plain[:16])
    assert (ours[16:] - plain[16:]).abs().amax(dim=-1).min() > 1e-3


def test_what_leaves_the_ring_changes_nothing_more(checkpoint: Checkpoint) -> None:
    """At a fold the feedback has just read a block; of the one that leaves it takes nothing a second time."""
    narrow, broad = (opened(checkpoint, window=window, sinks=0, layers=(0,)) for window in (16, 64))
    tokens = random_tokens(narrow, 96)
    for name in ("feedback", "feedback_values"):  # layer 0's keys and values depend on no other layer
        one, other = (read(decoder, tokens)[1].read(name) for decoder in (narrow, broad))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_new_sessions_and_old_ones_finish_a_block_together(checkpoint: Checkpoint) -> None:
    decoder = opened(checkpoint)
    histories = [random_tokens(decoder, count, seed=count) for count in (0, 32, 0, 64)]
    more = torch.tensor([random_tokens(decoder, 40, seed=90 + row) for row in range(len(histories))])
    together = decoder.empty_state(len(histories))
    for row, history in enumerate(histories):
        if history:
            together.select([row]).copy_from(read(decoder, history)[1])
    logits, _ = decoder(more, together, logits="all")
    for row, history in enumerate(histories):
        state = decoder.empty_state()
        if history:
            feed(decoder, state, history)
        expected, _ = decoder(more[row : row + 1], state, logits="all")
        torch.testing.assert_close(logits[row], expected[0], rtol=0, atol=1e-4)
        assert_same_state(together.select([row]), state)


def test_the_feedback_is_the_same_wherever_in_the_text_its_blocks_stand(checkpoint: Checkpoint) -> None:
    """All distances are relative, so a session a million tokens long is nothing new; keys differ by the turn alone."""
    decoder = opened(checkpoint, torch.float64)
    memory, config = feedback_of(decoder), checkpoint.config
    layer = decoder.weights.layers[1]
    assert isinstance(layer, Layer)
    rotary = Rotary(config, "cpu", dtype=torch.float64)
    generator = torch.Generator().manual_seed(8)
    keys, values = torch.randn(2, 1, config.num_kv_heads, 16, config.head_dim, generator=generator).double()
    begun = read(decoder, random_tokens(decoder, 32))[1]  # at position 32
    # Turning by the shift is all that is different.
    shift_cos, shift_sin = rotary.table(torch.tensor([[1_000_000]]))
    cos, sin = rotary.table(torch.arange(32, 48)[None])
    far_cos, far_sin = rotary.table(torch.arange(32, 48)[None] + 1_000_000)
    near, far = begun, begun.clone()
    far.write("feedback_keys", rotate(begun.read("feedback_keys", 1), shift_cos, shift_sin), 1)
    memory.finish(1, layer, near, Finished(rotate(keys, cos, sin), values, cos, sin, torch.tensor([32]), []))
    turned = Finished(rotate(keys, far_cos, far_sin), values, far_cos, far_sin, torch.tensor([1_000_032]), [])
    memory.finish(1, layer, far, turned)
    torch.testing.assert_close(near.read("feedback"), far.read("feedback"), rtol=1e-7, atol=1e-7)
    near_keys, far_keys = near.read("feedback_keys", 1), far.read("feedback_keys", 1)
    torch.testing.assert_close(rotate(near_keys, shift_cos, shift_sin), far_keys, rtol=1e-7, atol=1e-7)
    assert (near_keys - far_keys).abs().max() > 0.1


def test_the_initial_feedback_of_a_layer_knows_the_model_and_not_the_text(checkpoint: Checkpoint) -> None:
    """Only the last layer has feedback: it asks its first block with what three layers made of the embedding."""
    decoder = opened(checkpoint, torch.float64, layers=(3,))
    memory = feedback_of(decoder)
    asked: list[Tensor] = []
    for seed in (1, 2):
        state = decoder.empty_state()
        feed(decoder, state, random_tokens(decoder, 15, seed))
        assert not state.read("feedback").any()
        rotary = decoder.weights.rotary.table(torch.arange(16)[None])
        for number, layer in enumerate(decoder.weights.layers[:3]):
            assert isinstance(layer, Layer)
            keys, values = (
                state.read(f"ring_{name}", number, slice(None), slice(4, 20)) for name in ("keys", "values")
            )
            memory.finish(number, layer, state, Finished(keys, values, *rotary, torch.tensor([0]), [0]))
        asked.append(state.read("feedback", 0))
    assert torch.equal(*asked)
    assert (asked[0] - memory.initial).abs().max() > 0.1


def test_it_may_begin_with_a_text_over_and_over(checkpoint: Checkpoint) -> None:
    memory = feedback_of(opened(checkpoint))
    words = torch.randn(4, checkpoint.config.hidden_size)
    memory.begin_with(words)
    assert torch.equal(memory.initial, words[[2, 3, 0, 1, 2, 3]])
    with pytest.raises(ConfigError, match="window has no tokens of its own"):
        build(checkpoint, window_config()).memory.begin_with(words)


def test_the_state_holds_tokens_keys_and_values_of_the_chosen_layers(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    spec = Feedback(config, settings(layers=(0, 2)), torch.bfloat16).spec()
    projected = (2, config.num_kv_heads, 6, config.head_dim)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in spec.items()} == {
        "feedback": ((2, 6, config.hidden_size), torch.float32),
        "feedback_keys": (projected, torch.bfloat16),
        "feedback_values": (projected, torch.bfloat16),
    }


@pytest.mark.parametrize(("count", "used"), [(0, 0), (15, 0), (16, 12), (200, 12)])
def test_the_report_counts_the_tokens_once_they_are_in_use(checkpoint: Checkpoint, count: int, used: int) -> None:
    decoder = opened(checkpoint, layers=(1, 3))
    state = decoder.empty_state()
    if count:
        feed(decoder, state, random_tokens(decoder, count))
    layers = decoder.memory.report(state).layers
    assert [(layer.layer, layer.heads, layer.slots, layer.used) for layer in layers] == [
        (1, (0, 1), 6, used),
        (3, (0, 1), 6, used),
    ]


@pytest.mark.parametrize("tokens", [0, -1, 16, 64])
def test_feedback_that_cannot_work_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"tokens .* must lie between 1 and the segment"):
        settings(tokens=tokens)


def test_what_is_not_worth_an_update_changes_nothing_of_the_feedback(checkpoint: Checkpoint) -> None:
    decoder = opened(checkpoint, torch.float64, gated=True)
    memory = feedback_of(decoder)
    memory.write_offset.fill_(-0.1)
    memory.write_offset[1, 2] = 0.1
    _, state = read(decoder, random_tokens(decoder, 32))
    before = state.read("feedback").clone()
    assert before.abs().amax(dim=-1).min() > 0  # the first block is taken whole
    feed(decoder, state, random_tokens(decoder, 160, seed=1))
    changed = (state.read("feedback") != before).any(dim=-1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


def test_where_the_initial_feedback_is_carried_the_first_block_is_decided_on_as_well(checkpoint: Checkpoint) -> None:
    decoder = opened(checkpoint, torch.float64, gated=True, carry_initial=True, write_init=0.4)
    feedback_of(decoder).write_offset[1, 2] = 0.1
    starts = []
    for seed in (0, 1):
        _, state = read(decoder, random_tokens(decoder, 16, seed=seed))
        starts.append(state.read("feedback")[0])
    assert torch.equal(starts[0][0], feedback_of(decoder).initial)  # as no layer has changed it yet
    differ = (starts[0] != starts[1]).any(dim=-1)
    assert differ.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("changes", [{"write_init": 0.0}, {"write_cost": -0.1}])
def test_a_strength_that_cannot_be_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        settings(gated=True, **changes)


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_below_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit must be 0"):
        settings(limit=limit)


@pytest.mark.parametrize("layers", [(4,), (-1, 0)])
def test_layers_that_the_model_does_not_have_are_refused(checkpoint: Checkpoint, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layers must lie between 0 and 3"):
        MECHANISM.build(checkpoint.config, settings(layers=layers), torch.float32)
