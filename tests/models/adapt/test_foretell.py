"""Attention that is watched, and attention that is foretold."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from models.adapt.foretell import Asking, Attention, Hearing, fit, hide, watch_answers
from models.config import MemoryConfig
from models.errors import ConfigError
from models.load import weights_of
from models.memory.importance import Learned
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint

HEADS = ((0, 1), (2, 0), (3, 1))


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_model), dtype=torch.float32)


@torch.inference_mode()
def test_where_an_answer_looks_is_the_softmax_of_its_scores(checkpoint: Checkpoint) -> None:
    config = MemoryConfig(window=64, segment=32, sinks=4)
    decoder = Asking(weights_of(checkpoint), Hearing(checkpoint.config, config, torch.float32))
    state, tokens = decoder.empty_state(), torch.randint(90, (1, 50), generator=torch.Generator().manual_seed(0))
    decoder(tokens[:, :40], state)
    decoder.watch(100)
    decoder.answers = slice(6, None)
    decoder(tokens[:, 40:], state)
    # Every query's attention sums up to 1, and the largest of several is no less than any of them.
    sums = decoder.found.sum(dim=-1)
    assert ((sums >= 1 - 1e-4) & (sums <= 4 * checkpoint.config.queries_per_kv + 1e-4)).all()
    assert not decoder.found[..., :4].any()  # the places of sinks are empty until something is evicted
    assert not decoder.found[..., 4 + 50 :].any()
    assert decoder.found[..., 4 : 4 + 50].gt(0).all()


def test_what_was_heard_and_paid_belongs_to_the_same_tokens(checkpoint: Checkpoint) -> None:
    book = Tokenizer.of(checkpoint.tokenizer).encode(prose(random.Random(0), 60_000))
    said: list[str] = []
    seen = watch_answers(checkpoint, book, HEADS, 2, stretches=2, seed=3, say=said.append)
    assert seen.hidden.shape == (2, 2048 - 4, checkpoint.config.hidden_size)
    assert seen.mass.shape == (2, 2048 - 4, len(HEADS))
    assert seen.mass.min() >= 0
    assert seen.mass.sum(dim=1).gt(0).all()
    assert 0 <= seen.right <= 1
    again = watch_answers(checkpoint, book, HEADS, 2, stretches=2, seed=3, say=said.append)
    assert torch.equal(seen.mass, again.mass)


def test_a_short_book_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="at least 4096"):
        watch_answers(checkpoint, [1] * 4000, HEADS, 2, stretches=1, seed=0, say=print)


def test_sentences_are_hidden_whole_and_in_order(checkpoint: Checkpoint) -> None:
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(prose(random.Random(0), 20_000))
    sentences = ["Anna lives in Rome.", "Otto hates figs.", "The hat of Ida is red."]
    tokens, ends = hide(tokenizer, book, sentences, 700, random.Random(1))
    text = tokenizer.decode(tokens)
    assert len(tokens) == 700
    assert [text.find(sentence) >= 0 for sentence in sentences] == [True] * 3
    assert sorted(sentences, key=text.find) == sentences
    for sentence, end in zip(sentences, ends, strict=True):
        assert tokenizer.decode(tokens[:end]).endswith(sentence)


def test_marked_tokens_are_foretold_and_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 500, 32, generator=generator)
    marked = torch.rand(6, 500, generator=generator) < 0.05
    hidden[..., 3] += 4 * marked
    mass = torch.stack((marked.float(), 1e-4 + 0 * marked.float()), dim=-1)
    importance = Learned(MemoryConfig(), 2, 32, torch.float32)
    kept = fit(Attention(hidden.to(torch.bfloat16), mass, 1.0), importance, seed=0, epochs=60)
    assert 0.5 < kept < 0.65  # all of the marked head's attention, a tenth of that which knows no difference
    scores = importance(hidden)[..., 0]
    assert scores[marked].mean() > scores[~marked].mean() + 2
    assert not any(parameter.requires_grad for parameter in importance.parameters())
