"""Sentences that begin alike, and that what was said last replaces what was said before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models import native
from models.errors import ConfigError
from models.memory.beginnings import LEAST, Beginnings
from models.memory.slots import Slots
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint
from tests.models.references.slots import SlotsReference
from tests.models.sessions import build, open_memory, read, slots_config

END = 9


@pytest.fixture(params=["native", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read; without a compiler they are one."""
    if request.param == "torch":
        monkeypatch.setattr(native, "suits_beginnings", lambda *_: False)


A, B, C, D, E = range(1, 6)


def said(texts: Sequence[Sequence[int]], cuts: Sequence[int] = ()) -> Tensor:
    beginnings = Beginnings([END], 40)
    state = MemoryState.empty(beginnings.spec(), len(texts))
    tokens = torch.tensor(texts)
    sizes = [*cuts, tokens.shape[1] - sum(cuts)]
    return torch.cat([beginnings.read(part, state) for part in tokens.split(sizes, dim=1)], dim=1)


def test_a_token_is_known_by_its_sentence_up_to_it() -> None:
    [found] = said([[A, B, C, D, E, END, A, B, C, D, A, END, B, B, C, D, E, E]]).tolist()
    assert found[4] == found[10] != 0  # A B C D
    assert found[5] != found[11]  # and then E, or A
    assert found[:4] == found[6:10] == found[12:16] == [0, 0, 0, 0]  # fewer than LEAST before them
    assert found[16] not in (found[4], 0)
    assert LEAST == 4


@pytest.mark.parametrize("cuts", [(1,) * 20, (3, 9), (16, 1), (0, 20)], ids=str)
def test_it_is_the_same_however_the_text_is_cut(cuts: Sequence[int]) -> None:
    source = random.Random(1)
    texts = [[source.choice([A, B, END]) for _ in range(40)] for _ in range(3)]
    assert torch.equal(said(texts, cuts), said(texts))
    assert said(texts).unique().numel() > 10


def test_both_ways_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[source.choice([A, B, C, END]) for _ in range(60)] for source in map(random.Random, range(3))]
    first = said(texts, (7, 20))
    monkeypatch.setattr(native, "suits_beginnings", lambda *_: False)
    assert torch.equal(said(texts, (5, 1, 30)), first)


def test_each_beginning_has_a_number_of_its_own() -> None:
    sentences = [[source >> bit & 1 for bit in range(12)] for source in range(4096)]
    found = said([[END, *sentence, A] for sentence in sentences])
    assert found[:, -1].unique().numel() == 4096
    long = torch.arange(3000)[None] % 7 + 10
    assert Beginnings([END], 40).read(long, MemoryState.empty(Beginnings([END], 40).spec(), 1)).unique().numel() == 2997


@pytest.mark.parametrize("importance", ["learned", "leverage"])
@pytest.mark.parametrize("cuts", [(), (1,), (16, 3), (50,)], ids=str)
def test_slots_keep_what_the_reference_keeps(importance: str, cuts: Sequence[int], checkpoint: Checkpoint) -> None:
    heads = ((2, 0), (2, 1), (3, 0))  # in the first layer the keys of equal tokens, and what they are worth, are equal
    config = slots_config(importance=importance, listens=1, ends=(END,), heads=heads)
    decoder = build(checkpoint, config, torch.float64)
    open_memory(decoder.memory)
    source = random.Random(2)
    tokens = [source.choice([A, B, B, B, B, END]) for _ in range(200)]
    reference = SlotsReference(checkpoint.config, checkpoint.tensors, config, dict(decoder.memory.named_parameters()))
    with torch.no_grad():
        expected = reference.read(tokens)
        found, state = read(decoder, tokens, cuts)
    assert (found - expected).abs().max() < 1e-8
    for index, head in enumerate(config.heads):
        assert state.read("slot_position")[0, index].tolist() == reference.kept[head]
    plain = build(checkpoint, slots_config(importance=importance, listens=1, heads=heads), torch.float64)
    open_memory(plain.memory)
    with torch.no_grad():
        otherwise = read(plain, tokens)[1].read("slot_position")
    assert not torch.equal(otherwise, state.read("slot_position"))  # it made a difference


def test_what_is_said_again_goes_first(checkpoint: Checkpoint) -> None:
    """The value of the first sentence has given way to that of the second in every head, whatever they were worth."""
    config = slots_config(importance="learned", listens=1, ends=(END,))
    decoder = build(checkpoint, config)
    open_memory(decoder.memory)
    assert isinstance(decoder.memory, Slots)
    source = random.Random(3)
    filler = [source.randrange(20, 200) for _ in range(150)]
    tokens = [*filler[:20], END, A, B, C, D, 201, END, *filler[20:60], END, A, B, C, D, 202, END, *filler[60:]]
    with torch.no_grad():
        _, state = read(decoder, tokens)
    kept = [set(row) for row in state.read("slot_token")[0].tolist()]
    assert all(201 not in row for row in kept)


def test_ends_must_be_tokens_of_the_model(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="ends"):
        build(checkpoint, slots_config(ends=(10**6,)))
