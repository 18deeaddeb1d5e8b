"""The equations of `feedback`, on numbers made by hand, and what stays of an update after many.

By hand: one head of size 2, projections that copy, positions that turn nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.asked import Asked
from models.config import ModelConfig
from models.layers import Layer
from models.memory.base import Finished
from models.memory.feedback import Feedback, FeedbackConfig
from models.memory.strength import Marked
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.open_feedback import feedback_of, opened
from tests.models.sessions import random_tokens, read

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


def small_memory(**changes: Any) -> Feedback:
    config = FeedbackConfig(window=2, segment=2, sinks=0, tokens=1, **changes)
    built = Feedback(SMALL, config, torch.float64).requires_grad_(False)
    built.initial.copy_(torch.tensor([[3.0, 4.0]]))
    return built


@pytest.mark.parametrize("carried", [False, True])
def test_the_first_update_asks_with_the_initial_feedback_and_carries_it_where_it_should(carried: bool) -> None:
    memory = small_memory(carry_initial=carried)
    state = MemoryState.empty(memory.spec(), 1)
    keys, values = torch.tensor([[5.0, 0.0], [0.0, 5.0]]).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    memory.finish(0, copying_layer(), state, block(keys, values, 0))
    asking = torch.tensor([3.0, 4.0]).double() * 2**0.5 / 5  # root-mean-square 1
    share = torch.stack((asking @ asking, 5 * asking[0], 5 * asking[1])).div(2**0.5).softmax(0)
    expected = share[0] * asking + share[1] * values[0] + share[2] * values[1] + carried * memory.initial[0]
    torch.testing.assert_close(state.read("feedback")[0, 0, 0], expected)


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1)])
def test_feedback_is_told_where_the_answer_stands_and_what_to_hold(places: tuple[int, ...]) -> None:
    memory = small_memory(answers_taught=0.5)
    answers = torch.zeros(1, 2, dtype=torch.int64)
    answers[0, list(places)] = 1
    memory.losses, memory.marked = [], Marked(answers > 0, torch.tensor([0]), answers)
    keys = torch.tensor([[5.0, 0.0], [0.0, 5.0]]).double()
    state = MemoryState.empty(memory.spec(), 1)
    memory.finish(0, copying_layer(), state, block(keys, keys, 0))
    asking = torch.tensor([3.0, 4.0]).double() * 2**0.5 / 5
    share = torch.stack((asking @ asking, 5 * asking[0], 5 * asking[1])).div(2**0.5).softmax(0)[1:]
    looked, held = memory.losses
    torch.testing.assert_close(looked, -0.5 * share[list(places)].sum().log())
    right, values = keys[list(places)].mean(dim=0), state.read("feedback_values")[0, 0, 0, 0]
    torch.testing.assert_close(held, 0.5 * (values - right).square().sum() / right.square().sum())


@pytest.mark.parametrize("unknown", ["not training", "no answers", "not taught", "another of the answer's tokens"])
def test_attention_is_told_nothing_where_nobody_can_say(unknown: str) -> None:
    memory = small_memory(answers_taught=0.0 if unknown == "not taught" else 0.5)
    answers = torch.tensor([[0, 2]])  # there is one feedback token, which would look for the first
    memory.marked = Marked(answers > 0, torch.tensor([0]), None if unknown == "no answers" else answers)
    memory.losses = None if unknown == "not training" else []
    keys = torch.ones(2, 2).double()
    memory.finish(0, copying_layer(), MemoryState.empty(memory.spec(), 1), block(keys, keys, 0))
    assert not memory.losses


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


def test_without_the_network_attention_alone_is_added() -> None:
    memory, layer = small_memory(carry_initial=True, feed_forward=False), copying_layer(3.0)
    state = MemoryState.empty(memory.spec(), 1)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    memory.finish(0, layer, state, block(5 * values, values, 0))
    plain, expected = small_memory(carry_initial=True), MemoryState.empty(memory.spec(), 1)
    plain.finish(0, copying_layer(), expected, block(5 * values, values, 0))  # a network that adds nothing
    torch.testing.assert_close(state.read("feedback"), expected.read("feedback"))


def test_whoever_is_to_say_a_token_is_told_which_feedback_has_it(checkpoint: Checkpoint) -> None:
    """Only what has been updated can be found."""
    told = {"answers_taught": 0.5, "write_taught": 1.0}
    decoder = opened(checkpoint, torch.float64, layers=(1,), gated=True, carry_initial=True, **told)
    memory = feedback_of(decoder)
    memory.write_offset[0, 1] = 1.0
    memory.write_offset[0, [0, 2, 3, 4, 5]] = -1.0
    _, state = read(decoder, random_tokens(decoder, 16))
    shape = (1, checkpoint.config.num_kv_heads, checkpoint.config.queries_per_kv, 3, checkpoint.config.head_dim)
    query = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    nothing = query.new_zeros(1, 1, 1, checkpoint.config.head_dim // 2)
    questions = torch.tensor([[0, 0, 2, 1]])
    memory.losses = []
    memory.marked = Marked(questions > 0, torch.tensor([15]), torch.zeros_like(questions), questions)
    memory.read(1, state, Asked(query, query, nothing, nothing, [0], [16], positions=[16]))
    [loss] = memory.losses
    scores = query @ state.read("feedback_keys", 0)[:, :, None].mT / checkpoint.config.head_dim**0.5
    torch.testing.assert_close(loss, -0.5 * scores.softmax(-1)[..., 1, 1].mean().log())
