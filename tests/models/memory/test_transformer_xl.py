"""Cached keys and values are what cached hidden states give, and where the paper stops gradients they can be stopped."""

from __future__ import annotations

import torch

from models.config import MemoryConfig
from models.memory.base import Report
from models.memory.transformer_xl import TransformerXLConfig
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.references.transformer_xl import TransformerXLReference
from tests.models.sessions import asked_after, build, random_tokens, read

LENGTH = 66


def config() -> TransformerXLConfig:
    return TransformerXLConfig(window=32, segment=16)


def test_the_paper_has_no_sinks_and_reaches_as_far_as_its_cache() -> None:
    assert TransformerXLConfig().sinks == 0
    assert TransformerXLConfig(window=64, segment=16).reach == 64


def test_it_adds_nothing_to_the_ring(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, config())
    plain = build(checkpoint, MemoryConfig(32, 16, 0))
    assert decoder.spec() == plain.spec()
    assert decoder.memory_fingerprint() != plain.memory_fingerprint()
    tokens = random_tokens(decoder, LENGTH)
    logits, state = read(decoder, tokens)
    assert torch.equal(logits, read(plain, tokens)[0])
    assert decoder.memory.report(state) == Report()
    assert decoder.memory.read(0, state, asked_after(64)) is None


def test_keys_computed_anew_from_cached_hidden_states_give_the_same_numbers(checkpoint: Checkpoint) -> None:
    """What the paper does, its stop of gradients included, beside what the ring does."""
    decoder = build(checkpoint, config(), torch.float64)
    tokens = random_tokens(decoder, LENGTH)
    paper = TransformerXLReference(checkpoint.config, checkpoint.tensors, config())
    paper.stop = True
    with torch.no_grad():
        wanted = paper.read(tokens)
    for cuts in ((), (1,), (7, 50)):
        assert (read(decoder, tokens, cuts)[0] - wanted).abs().max() < 1e-8


def test_where_training_detaches_no_gradient_comes_from_earlier_segments(checkpoint: Checkpoint) -> None:
    """The last segment's loss, by the embedding of a token that only earlier segments have.

    The paper's stop of gradients leaves none there, and neither does a state that was detached between segments; a state
    that was not hands some on.
    """
    small = TransformerXLConfig(window=16, segment=8)
    decoder = build(checkpoint, small, torch.float64)
    embedding = decoder.weights.embedding.requires_grad_(True)
    *early, rare = range(20, 52)
    tokens = [rare, *early]  # four segments, no token twice
    found = {}
    for detach in (True, False):
        state = UnrolledState.start(decoder.spec(), 1)
        for begin in range(0, 32, 8):
            state = state.detached() if detach else state
            logits, _ = decoder(torch.tensor([tokens[begin : begin + 8]]), state, logits="all")
        loss = logits.log_softmax(-1)[..., rare].sum()
        (gradient,) = torch.autograd.grad(loss, embedding)
        # The output layer is tied to the embedding: tokens that are neither read nor asked for show what that alone gives.
        found[detach] = gradient[early[:15]]
    unread = {
        "model.embed_tokens.weight": checkpoint.tensors["model.embed_tokens.weight"].double().requires_grad_(True)
    }
    reference = TransformerXLReference(checkpoint.config, {**checkpoint.tensors, **unread}, small)
    reference.stop = True
    last = reference.read(tokens)[-8:].log_softmax(-1)[:, rare].sum()
    (wanted,) = torch.autograd.grad(last, unread["model.embed_tokens.weight"])
    assert (found[True] - wanted[early[:15]]).abs().max() < 1e-10
    assert (found[False] - wanted[early[:15]]).abs().max() > 1e-4
