"""How much the gates of `feedback` let in, closed and open, and what is learned of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.asked import Asked, Beside
from models.memory.feedback import Feedback, FeedbackConfig
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memory.open_feedback import OPEN, feedback_of, opened, settings
from tests.models.sessions import build, feed, open_memory, random_tokens, read, window_config


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
