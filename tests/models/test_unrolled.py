"""The state of training: what gradients reach through it, and where they end."""

from __future__ import annotations

import pytest
import torch

from models.memory.compressive import CompressiveConfig
from models.state import MemoryState, TensorSpec
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import build, feed, random_tokens, window_config


@pytest.mark.parametrize("name", ["key_kernel", "value_kernel"])
def test_one_parameter_alone_gets_its_gradient_from_long_chunks(checkpoint: Checkpoint, name: str) -> None:
    """A fused kernel that loses one must not be taken."""
    decoder = build(checkpoint, CompressiveConfig(32, 16, 4, entries=10, compression="conv"))
    kernel = decoder.memory.get_parameter(name).requires_grad_(True)
    logits = feed(decoder, UnrolledState.start(decoder.spec(), 1), random_tokens(decoder, 120), (60,))
    logits.square().sum().backward()
    assert kernel.grad is not None
    assert kernel.grad.abs().sum() > 0


def test_detached_sessions_pass_no_gradient_back_and_go_on_as_they_were(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, window_config())
    embedding = decoder.weights.embedding.requires_grad_(True)
    tokens = random_tokens(decoder, 60)
    state = UnrolledState.start(decoder.spec(), 1)
    feed(decoder, state, tokens[:50])
    cut = state.detached()
    cut_logits, logits = feed(decoder, cut, tokens[50:]), feed(decoder, state, tokens[50:])
    assert torch.equal(cut_logits, logits)
    short, long = (torch.autograd.grad(one.sum(), embedding)[0] for one in (cut_logits, logits))
    # The output layer is tied to the embedding, and all its rows are asked alike: what is read has more than an unread row.
    early = sorted(set(tokens[:50]) - set(tokens[50:]))
    unread = min(set(range(decoder.config.vocab_size)) - set(tokens))
    torch.testing.assert_close(short[early], short[unread].expand(len(early), -1), rtol=1e-4, atol=1e-4)
    assert ((long[early] - long[unread]).abs().amax(dim=1) > 1).all()


def test_repeated_sessions_have_read_the_same_and_leave_it_alone(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, CompressiveConfig(32, 16, 4, entries=10))
    state = decoder.empty_state()
    feed(decoder, state, random_tokens(decoder, 70))
    before = state.clone()
    repeated = UnrolledState.repeated(state, 3)
    more = torch.tensor([random_tokens(decoder, 40, seed=row) for row in range(3)])
    logits, _ = decoder(more, repeated, logits="all")
    plain, _ = decoder(more, state.repeat(3), logits="all")
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before.tensors()[name]), name


def test_rows_of_an_unrolled_state_advance_together(checkpoint: Checkpoint) -> None:
    state = UnrolledState.start(build(checkpoint, window_config()).spec(), 3)
    with pytest.raises(AssertionError, match="together"):
        state.select([0, 2])


def test_places_of_every_shape_are_written_and_read_as_in_an_ordinary_state() -> None:
    spec = {
        "position": TensorSpec((), torch.int64),
        "flat": TensorSpec((7,), torch.int32),
        "deep": TensorSpec((7, 3), torch.float32),
    }
    plain, unrolled = MemoryState.empty(spec, 2), UnrolledState.start(spec, 2)
    places = torch.tensor([[5, 6, 0], [5, 6, 0]])
    values = {"flat": torch.arange(6, dtype=torch.int32).view(2, 3), "deep": torch.randn(2, 3, 3, requires_grad=True)}
    for name, value in values.items():
        for state in (plain, unrolled):
            state.write_places(name, places, value.detach() if state is plain else value)
        assert torch.equal(unrolled.read_places(name, places), plain.read_places(name, places))
        assert torch.equal(unrolled.tensors()[name], plain.tensors()[name])
    assert unrolled.read_places("deep", places[:, 1:]).requires_grad
