"""How slots are looked at is learned, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapt import sharpen as module
from models.adapt.foretell import hide
from models.adapt.sharpen import Progress, Told, sharpen
from models.asked import Before, Far
from models.attention import attend_jointly
from models.errors import ConfigError
from models.memory.look import TRAIL, Look
from models.memory.slots import Slots
from models.probes import passkey_haystack, prose
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint, load_checkpoint
from tests.models.sessions import build, open_memory, random_tokens, slots_config

TOLD = Told(facts=5, needles=2, anew=2)


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_model), dtype=torch.float32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS", 2)
    monkeypatch.setattr(module, "PLACES", (500, 900))
    monkeypatch.setattr(module, "REPEATS", (6,))
    monkeypatch.setattr(module, "BEHIND", (0, 2))
    monkeypatch.setattr(module, "LEAD", 40)


def taught(checkpoint: Checkpoint, steps: int) -> tuple[Decoder, list[Progress]]:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(decoder.memory)
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    said: list[Progress] = []
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    sharpen(decoder, tokenizer, book, steps=steps, text_weight=3.0, seed=0, told=TOLD, say=said.append)
    return decoder, said


def test_only_the_look_is_learned(checkpoint: Checkpoint) -> None:
    decoder, said = taught(checkpoint, 20)
    untouched = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(untouched.memory)
    for name, parameter in decoder.memory.named_parameters():
        same = torch.equal(parameter, dict(untouched.memory.named_parameters())[name])
        assert same == (not name.startswith("look.")), name
        assert parameter.isfinite().all()
        assert not parameter.requires_grad
    assert [progress.step for progress in said] == [10, 20]


def test_the_same_seed_learns_the_same(checkpoint: Checkpoint) -> None:
    (one, _), (other, _) = taught(checkpoint, 3), taught(checkpoint, 3)
    assert isinstance(one.memory, Slots)
    assert isinstance(other.memory, Slots)
    assert one.memory.look is not None
    assert other.memory.look is not None
    assert torch.equal(one.memory.look.up, other.memory.look.up)


def test_a_short_book_is_refused(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1))
    with pytest.raises(ConfigError, match="at least 1134 are needed"):
        sharpen(
            decoder,
            Tokenizer.of(checkpoint.tokenizer),
            [5] * 1000,
            steps=1,
            text_weight=1.0,
            seed=0,
            say=lambda _: None,
        )


def test_long_calls_pass_the_same_gradients_as_short_ones() -> None:
    """Nothing but the look asks for gradients, as in the lowest layer: a fused kernel that loses some must not be taken."""
    generator = torch.Generator().manual_seed(0)
    query, far_query = torch.randn(2, 1, 2, 3, 20, 8, generator=generator).double()
    keys, values, far_keys, far_values = torch.randn(4, 1, 2, 30, 8, generator=generator).double()
    bias = torch.zeros(1, 1, 3 * 20, 30).double()
    look = Look(2, 3, 8, torch.float64)
    for parameter in look.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    before = torch.randn(1, 2, 20 + 30, 8, TRAIL, generator=generator).double()
    known = torch.ones(1, 1, 1, 1, TRAIL).bool()
    age = torch.linspace(1, 0, 30)[None].double()
    found = []
    for cut in (20, 5):
        outs = []
        kept = look.kept(far_keys, Before(before[:, :, 20:], known), slice(0, 2))
        parts = zip(
            query.split(cut, dim=3), far_query.split(cut, dim=3), before[:, :, :20].split(cut, dim=2), strict=True
        )
        for near, away, told in parts:
            asked, offset, slope = look(away, Before(told, known), slice(0, 2))
            far = Far([0, 1], kept, far_values, query=asked, offset=offset, slope=slope, age=age)
            outs.append(attend_jointly(near, keys, values, bias[:, :, : 3 * cut], asked, far))
        found.append(torch.autograd.grad(torch.cat(outs, dim=3).square().sum(), list(look.parameters())))
    for long, short in zip(*found, strict=True):
        torch.testing.assert_close(long, short)
        assert long.abs().max() > 1e-6


def test_each_row_loses_what_it_would_lose_alone(checkpoint: Checkpoint) -> None:
    """Rows of several lengths go through the model together; a session is not changed by what is asked of it."""
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(decoder.memory)
    state = decoder.empty_state()
    module._read(decoder, list(range(5, 205)), state)
    rows, wanted = [[7, 8, 9, 10, 11], [20, 21], [30] * 40], [[12, 13], [3], [31]]
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    with torch.no_grad():
        together = module._losses(decoder, state, rows, wanted)
        alone = [module._losses(decoder, state, [row], [want])[0] for row, want in zip(rows, wanted, strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_a_session_is_asked_for_what_was_said_so_far_and_goes_on_as_its_text_does(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    more = module.LEAD + module.TEXT + 1
    tokens, ends = hide(tokenizer, book, ["Anna lives in Rome."], 900 + more, random.Random(1))
    monkeypatch.setattr(module, "hide", lambda *_: (tokens, [400, 450, 501, 600, 800, 899, 901]))
    sessions = module._facts(decoder, tokenizer, book, Told(5, 2, 0), random.Random(3))
    for session, place, said in zip(sessions, (500, 900), (2, 6), strict=True):
        assert session.state.positions == [place]
        assert len(session.facts) == said
        assert session.after == tokens[place : place + more]
    assert tokenizer.decode(tokens[: ends[0]]).endswith("Anna lives in Rome.")


def test_the_newest_of_what_was_said_anew_is_asked_for(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    told: list[str] = []

    def hidden(tokenizer: Tokenizer, book: list[int], sentences: list[str], *rest: Any) -> tuple[list[int], list[int]]:
        told.extend(sentences)
        return hide(tokenizer, book, sentences, *rest)[0], [100] * len(sentences)

    monkeypatch.setattr(module, "hide", hidden)
    facts = module._facts(decoder, tokenizer, book, TOLD, random.Random(3))[-1].facts
    assert (len(told), len(facts)) == (9, 7)
    for fact in facts:
        beginning = fact.sentence.partition(fact.answer)[0]
        assert [one for one in told if one.startswith(beginning)][-1] == fact.sentence


def test_passkeys_are_asked_for_near_and_far(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    near, far = module._passkeys(decoder, tokenizer, book, random.Random(3))
    [key], [other] = near.facts, far.facts
    assert key != other
    filler = len(tokenizer.encode(passkey_haystack(2), start=False)) - len(
        tokenizer.encode(passkey_haystack(0), start=False)
    )
    [behind], [before] = far.state.positions, near.state.positions
    assert abs(behind - before - filler) < 8, "two sentences of different keys"
    assert len(near.after) == module.LEAD + module.TEXT + 1


def test_a_look_that_has_begun_goes_on_from_where_it_is(checkpoint: Checkpoint) -> None:
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(prose(random.Random(0), 30_000))
    looks = []
    for begun in (True, False):
        decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
        open_memory(decoder.memory)
        sharpen(decoder, tokenizer, book, steps=1, text_weight=3.0, seed=0, begun=begun, say=lambda _: None)
        assert isinstance(decoder.memory, Slots)
        assert decoder.memory.look is not None
        looks.append(decoder.memory.look)
    untouched = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(untouched.memory)
    assert isinstance(untouched.memory, Slots)
    assert untouched.memory.look is not None
    for name in ("sharpness", "offset", "key_trail", "slope"):
        far = [float((getattr(look, name) - getattr(untouched.memory.look, name)).abs().max()) for look in looks]
        assert 0 < far[0] < 0.1, f"one small step, of {name}"
        assert name == "slope" or far[1] > 0.1


def test_what_is_taught_is_what_will_be_kept(checkpoint: Checkpoint) -> None:
    """Keys that get their trails when they are read are those that get them when they are evicted."""
    decoder = build(checkpoint, slots_config(importance="learned", listens=1, slots=64))
    open_memory(decoder.memory)
    assert isinstance(decoder.memory, Slots)
    taught = Decoder(decoder.weights, module.Taught(decoder.memory, decoder))
    tokens = torch.tensor([random_tokens(decoder, 300)])
    (one, state), (other, _) = ((each(tokens, each.empty_state(), logits="all")) for each in (decoder, taught))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert state.positions == [300]
    look = decoder.memory.look
    assert look is not None
    with torch.no_grad():
        look.key_trail.zero_()
    without, _ = decoder(tokens, decoder.empty_state(), logits="all")
    assert not torch.allclose(one, without, atol=1e-3)
