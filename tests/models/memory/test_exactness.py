"""Every mechanism beside its slow float64 reference: forward and gradient, however the text is cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.transformer import Decoder
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.memories import ROWS, Row, each
from tests.models.sessions import build, feed, open_memory, random_tokens, read

LENGTH = 130  # a ring of 48 tokens, segments of 16: six folds, and two tokens more
DIFFERENTIABLE = {name: row for name, row in ROWS.items() if row.differentiable}


def exact(checkpoint: Checkpoint, row: Row) -> Decoder:
    """The tiny model in float64 with a memory that is wide open."""
    decoder = build(checkpoint, row.config, torch.float64)
    open_memory(decoder.memory)
    return decoder


def expected(
    checkpoint: Checkpoint, row: Row, decoder: Decoder, tokens: Sequence[int], weights: dict[str, Tensor]
) -> Tensor:
    parameters = dict(decoder.memory.named_parameters())
    return row.reference(checkpoint.config, weights, row.config, parameters).read(tokens)


@each(ROWS)
def test_chunks_and_single_tokens_equal_the_reference(checkpoint: Checkpoint, row: Row) -> None:
    decoder = exact(checkpoint, row)
    tokens = random_tokens(decoder, LENGTH)
    with torch.no_grad():
        reference = expected(checkpoint, row, decoder, tokens, dict(checkpoint.tensors))
        for cuts in ((), (1,), (16,), (7, 50, 1)):
            logits, _ = read(decoder, tokens, cuts)
            assert logits.dtype == torch.float64
            assert (logits - reference).abs().max() < 1e-8, cuts


@each(DIFFERENTIABLE)
def test_gradients_equal_those_of_the_reference(checkpoint: Checkpoint, row: Row) -> None:
    decoder = exact(checkpoint, row)
    tokens = random_tokens(decoder, LENGTH)
    learned = dict(decoder.memory.named_parameters())
    for parameter in learned.values():
        parameter.requires_grad_(True)
    embedding = decoder.weights.embedding.requires_grad_(True)
    weigh = torch.randn(LENGTH, decoder.config.vocab_size, generator=torch.Generator().manual_seed(1)).double()

    plain = {name: tensor.double() for name, tensor in checkpoint.tensors.items()}
    theirs = plain["model.embed_tokens.weight"].requires_grad_(True)
    reference = row.reference(checkpoint.config, plain, row.config, learned)
    wanted = torch.autograd.grad((reference.read(tokens) * weigh).sum(), (theirs, *learned.values()), allow_unused=True)

    for cuts in ((), (16,), (7, 50, 1)):
        state = UnrolledState.start(decoder.spec(), 1)
        logits = feed(decoder, state, tokens, cuts)
        got = torch.autograd.grad((logits * weigh).sum(), (embedding, *learned.values()), allow_unused=True)
        for name, ours, reference_gradient in zip(("embedding", *learned), got, wanted, strict=True):
            assert (ours is None) == (reference_gradient is None), name
            if ours is not None and reference_gradient is not None:
                scale = reference_gradient.abs().max().clamp_min(1e-6)
                assert (ours - reference_gradient).abs().max() / scale < 1e-7, (name, cuts)
