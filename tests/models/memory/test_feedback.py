"""What `feedback` carries from block to block, and who sees it when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.attention import Asked, Beside
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import Layer, Rotary, rotate
from models.memory.base import Finished
from models.memory.feedback import MECHANISM, Feedback, FeedbackConfig
from models.state import MemoryState
from models.transformer import Decoder
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import assert_same_state, build, feed, open_memory, random_tokens, read, window_config

OPEN = 40.0
"""A gate that takes nothing away: the paper's model."""


def settings(**changes: Any) -> FeedbackConfig:
    return FeedbackConfig(**{"window": 32, "segment": 16, "sinks": 4, "tokens": 6, "gate_init": OPEN, **changes})


def opened(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
    return build(checkpoint, settings(**changes), dtype)


def feedback_of(decoder: Decoder) -> Feedback:
    assert isinstance(decoder.memory, Feedback)
    return decoder.memory


# The equations, on numbers made by hand: one head of size 2, projections that copy, positions that turn nothing.

SMALL = ModelConfig(
    vocab_size=4,
    hidden_size=2,
    intermediate_size=1,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    rms_norm_eps=0.0,
    rope_theta=1e4,
    trained_context=64,
    tie_word_embeddings=True,
)


def copying_layer(down: float = 0.0) -> Layer:
    """Query, key, value and output are the normed input; the network adds `down` times silu(first) * second, to the first."""
    eye = torch.eye(2, dtype=torch.float64)
    tensors = {f"l.self_attn.{name}_proj.weight": eye for name in "qkvo"}
    tensors |= {f"l.{name}_layernorm.weight": eye.new_ones(2) for name in ("input", "post_attention")}
    tensors |= {"l.mlp.gate_proj.weight": eye[:1], "l.mlp.up_proj.weight": eye[1:]}
    return Layer(SMALL, tensors | {"l.mlp.down_proj.weight": eye[:, :1] * down}, "l")


def block(keys: Tensor, values: Tensor, start: int) -> Finished:
    """A finished block of one session, (S, 2) each, at positions that turn nothing."""
    still = torch.ones(1, 1, len(keys), 1, dtype=torch.float64)
    first = [0] if start == 0 else []
    return Finished(keys[None, None], values[None, None], still, still * 0, torch.tensor([start]), first)


def small_memory() -> Feedback:
    built = Feedback(SMALL, FeedbackConfig(window=2, segment=2, sinks=0, tokens=1), torch.float64).requires_grad_(False)
    built.initial.copy_(torch.tensor([[3.0, 4.0]]))
    return built


def test_the_first_update_asks_with_the_initial_feedback_and_does_not_carry_it() -> None:
    memory = small_memory()
    state = MemoryState.empty(memory.spec(), 1)
    keys, values = torch.tensor([[5.0, 0.0], [0.0, 5.0]]).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    memory.finish(0, copying_layer(), state, block(keys, values, 0))
    asking = torch.tensor([3.0, 4.0]).double() * 2**0.5 / 5  # root-mean-square 1
    share = torch.stack((asking @ asking, 5 * asking[0], 5 * asking[1])).div(2**0.5).softmax(0)
    expected = share[0] * asking + share[1] * values[0] + share[2] * values[1]
    torch.testing.assert_close(state.read("feedback")[0, 0, 0], expected)


@pytest.mark.parametrize("down", [0.0, 3.0])
def test_later_updates_add_attention_and_the_network_to_what_was_there(down: float) -> None:
    memory, layer = small_memory(), copying_layer(down)
    state = MemoryState.empty(memory.spec(), 1)
    before = torch.tensor([-1.0, 7.0]).double()
    normed = before / 5  # of root-mean-square 5
    state.write("feedback", before[None], 0)
    state.write("feedback_keys", normed[None], 0)
    state.write("feedback_values", normed[None], 0)
    # Both of the block's keys are the feedback's own, so the three are seen alike.
    values = torch.tensor([[6.0, 0.0], [0.0, -9.0]]).double()
    memory.finish(0, layer, state, block(normed.expand(2, 2), values, 2))
    mixed = before + (normed + values[0] + values[1]) / 3
    inner = mixed / mixed.square().mean().sqrt()
    expected = mixed + torch.stack((down * torch.nn.functional.silu(inner[0]) * inner[1], inner.new_zeros(())))
    torch.testing.assert_close(state.read("feedback")[0, 0, 0], expected)
    projected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(state.read("feedback_keys")[0, 0, 0, 0], projected)
    torch.testing.assert_close(state.read("feedback_values")[0, 0, 0, 0], projected)


@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("gate", [-2.0, 0.0, OPEN])
def test_the_gate_keeps_its_part_of_the_share_in_one_softmax(checkpoint: Checkpoint, length: int, gate: float) -> None:
    """20 tokens take the fused kernel, a single one does not."""
    decoder = opened(checkpoint, torch.float64, gate_init=gate)
    memory, config = feedback_of(decoder), checkpoint.config
    _, state = read(decoder, random_tokens(decoder, 32))
    shape = (1, config.num_kv_heads, config.queries_per_kv, length, config.head_dim)
    query = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    nothing = query.new_zeros(1, 1, 1, config.head_dim // 2)
    read_out = memory.read(1, state, Asked(query, query, nothing, nothing, [0], [32]))
    assert isinstance(read_out, Beside)
    assert read_out.mass is not None
    assert read_out.gate is not None
    ours = state.read("feedback_keys", 1), state.read("feedback_values", 1)
    scores = torch.einsum("bkgtd,bknd->bkgtn", query, ours[0]) / config.head_dim**0.5
    torch.testing.assert_close(read_out.mass, scores.logsumexp(-1))
    torch.testing.assert_close(read_out.out, torch.einsum("bkgtn,bknd->bkgtd", scores.softmax(-1), ours[1]))
    kept = read_out.gate.broadcast_to(1, config.num_kv_heads, config.queries_per_kv, 1, 1)
    torch.testing.assert_close(kept, torch.full_like(kept, gate).sigmoid())


# Who sees what, and when.


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


# The initial feedback and positions.


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


# Closed and open.


def test_closed_gates_leave_the_base_model_whatever_the_feedback_holds(checkpoint: Checkpoint) -> None:
    """Untrained keys can have any score: here each head would look at nothing but the feedback."""
    decoder, window = opened(checkpoint, gate_init=-10.0), build(checkpoint, window_config())
    tokens = random_tokens(decoder, 48)
    _, state = read(decoder, tokens[:32])
    state.write("feedback_keys", state.read("feedback_keys") * 1000)
    closed, plain = feed(decoder, state, tokens[32:]), read(window, tokens)[0][32:]
    assert (closed.log_softmax(-1) - plain.log_softmax(-1)).abs().max() < 5e-3
    decoder.memory.load_state_dict(opened(checkpoint).memory.state_dict())
    _, state = read(decoder, tokens[:32])
    state.write("feedback_keys", state.read("feedback_keys") * 1000)
    assert (feed(decoder, state, tokens[32:]).log_softmax(-1) - plain.log_softmax(-1)).abs().max() > 0.5


def test_it_starts_closed_and_the_same_every_time(checkpoint: Checkpoint) -> None:
    config = FeedbackConfig()
    assert (config.tokens, config.gate_init, config.layers) == (64, -10.0, ())
    one, other = (Feedback(checkpoint.config, config, torch.bfloat16) for _ in range(2))
    learned = dict(one.named_parameters())
    assert {name: tuple(tensor.shape) for name, tensor in learned.items()} == {
        "initial": (64, checkpoint.config.hidden_size),
        "gate": (4, checkpoint.config.num_heads),
    }
    for name, tensor in other.named_parameters():
        assert torch.equal(tensor, learned[name])
        assert tensor.dtype == torch.float32
    assert (one.gate == -10).all()
    assert Feedback(checkpoint.config, config, torch.float64).initial.dtype == torch.float64


def test_gradients_are_right_where_the_model_itself_is_frozen(checkpoint: Checkpoint) -> None:
    """Chunks of a whole block would take the fused kernel, which has no gradient for its log-sum-exp."""
    decoder = build(checkpoint, settings(), torch.float64)
    open_memory(decoder.memory)
    tokens = random_tokens(decoder, 64)
    weigh = torch.randn(64, decoder.config.vocab_size, generator=torch.Generator().manual_seed(4)).double()

    def loss() -> Tensor:
        state = UnrolledState.start(decoder.spec(), 1)
        return (feed(decoder, state, tokens) * weigh).sum()

    decoder.memory.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), tuple(decoder.memory.parameters()))
    decoder.memory.requires_grad_(False)
    for parameter, gradient in zip(decoder.memory.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)).double()
        parameter.add_(direction, alpha=1e-5)
        above = loss()
        parameter.sub_(direction, alpha=2e-5)
        below = loss()
        parameter.add_(direction, alpha=1e-5)
        torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("limit", "late"), [(0.0, (0.0, 0.01)), (2.0, (0.02, 1.0))])
def test_the_limit_lets_a_late_block_still_change_something(
    checkpoint: Checkpoint, limit: float, late: tuple[float, float]
) -> None:
    """As in the paper the residual grows with every block, in bfloat16 models too, and the 600th changes next to nothing."""
    decoder = opened(checkpoint, torch.bfloat16, layers=(1,), limit=limit)
    memory, layer = feedback_of(decoder), decoder.weights.layers[1]
    assert isinstance(layer, Layer)
    cos, sin = decoder.weights.rotary.table(torch.arange(16)[None])
    shape = (8, 1, checkpoint.config.num_kv_heads, 16, checkpoint.config.head_dim)
    blocks = torch.randn(shape, generator=torch.Generator().manual_seed(6)).bfloat16()
    _, state = read(decoder, random_tokens(decoder, 16))
    before = state.read("feedback")
    for number in range(600):
        before, part = state.read("feedback").clone(), blocks[number % 8]
        memory.finish(1, layer, state, Finished(part, part, cos, sin, torch.tensor([16]), []))
    after = state.read("feedback")
    assert after.isfinite().all()
    direction, direction_before = (torch.nn.functional.normalize(x, dim=-1) for x in (after, before))
    change = float((direction - direction_before).norm(dim=-1).mean())
    assert late[0] <= change < late[1]
    size = float(after.square().mean().sqrt())
    assert size < 5 * limit if limit else size > 20


# What it costs, what it says, what it refuses.


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


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_below_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit must be 0"):
        settings(limit=limit)


@pytest.mark.parametrize("layers", [(4,), (-1, 0)])
def test_layers_that_the_model_does_not_have_are_refused(checkpoint: Checkpoint, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layers must lie between 0 and 3"):
        MECHANISM.build(checkpoint.config, settings(layers=layers), torch.float32)
