"""Controls that control: what each of them takes away is gone, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.config import MemoryConfig
from models.evaluate.controls import Contenders, Shuffled, memory_off
from models.evaluate.plan import CONTROLS, Plan
from models.evaluate.reading import ROOM, Reader, window_reader
from models.load import LoadedModel, weights_of
from models.memory.window import Window
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint

QUESTION = list(range(40, 52))


@pytest.fixture
def strange(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("Zura lomi! Tiba sevo, rake nu. Mibase kelovo. " * 40)


def test_without_its_memory_it_is_the_window_of_the_same_weights(own: Reader, text: list[int]) -> None:
    off, decoder = memory_off(own), own.model.decoder
    alone = Decoder(decoder.weights, Window(decoder.config, MemoryConfig(window=64, segment=64), decoder.dtype))
    expected = Reader("alone", dataclasses.replace(own.model, decoder=alone)).losses(text)
    torch.testing.assert_close(off.losses(text), expected, rtol=0, atol=0)
    assert not torch.allclose(own.losses(text)[192:], expected[192:], atol=1e-3), "the memory has a say"
    assert own.state_bytes - off.state_bytes == sum(one.nbytes for one in decoder.memory.spec().values()) > 0


def test_the_window_is_that_of_the_base_model_and_as_wide(checkpoint: Checkpoint, own: Reader, text: list[int]) -> None:
    window = window_reader(checkpoint, own.model.decoder.memory.config, weights_of(checkpoint))
    assert window.name == "window 64 by 64"
    assert window.state_bytes == memory_off(own).state_bytes
    plain = window_reader(checkpoint, MemoryConfig(window=64, segment=64)).losses(text)
    torch.testing.assert_close(window.losses(text), plain, rtol=0, atol=0)
    assert not torch.allclose(memory_off(own).losses(text), plain, atol=1e-3), "the adapter changes the weights"


def test_a_shuffled_session_has_anothers_memory_and_its_own_ring(
    own: Reader, text: list[int], strange: list[int]
) -> None:
    shuffled = Shuffled("shuffled", own.model, strange)
    state = own.read(own.empty(), text[:700])
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    mixed, other = shuffled.exchanged(state).tensors(), own.read(own.empty(), strange[:700]).tensors()
    kept = set(own.model.decoder.memory.spec())
    assert kept < set(mixed)
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, (other if name in kept else before)[name])
        assert torch.equal(state.read(name), before[name]), "the session itself stays as it is"
    assert any(not torch.equal(mixed[name], before[name]) for name in kept)
    assert all(not torch.equal(before[name], other[name]) for name in ("ring_keys", "tokens", "hidden"))


def test_it_answers_from_the_exchanged_memory(own: Reader, text: list[int], strange: list[int]) -> None:
    state = own.read(own.empty(), text[:700])
    shuffled = Shuffled("shuffled", own.model, strange)
    expected = own.answer(shuffled.exchanged(state), QUESTION, 30)
    assert shuffled.answer(state, QUESTION, 30) == expected != own.answer(state, QUESTION, 30)
    assert Shuffled("itself", own.model, text).answer(state, QUESTION, 30) == own.answer(state, QUESTION, 30)


def test_the_other_session_stands_at_the_same_position_whatever_was_asked_before(
    own: Reader, strange: list[int]
) -> None:
    shuffled = Shuffled("shuffled", own.model, strange)
    for position in (640, 700, 650, 1_300, 30, 660):
        state = own.read(own.empty(), [9] * position)
        expected = own.read(own.empty(), strange[:position])
        mixed = shuffled.exchanged(state)
        assert mixed.positions == [position]
        for name in own.model.decoder.memory.spec():
            wanted = expected.read(name)
            # What docs/memory.md promises of other cuttings; how far below that they stay is up to the processor.
            torch.testing.assert_close(mixed.read(name), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def contenders(checkpoint: Checkpoint, model: LoadedModel, plan: Plan) -> Contenders:
    return Contenders(checkpoint, weights_of(checkpoint), Reader("infini", model), plan)


def test_all_controls_stand_beside_it_and_full_attention_only_as_far_as_it_goes(
    checkpoint: Checkpoint, infini: LoadedModel
) -> None:
    rivals = contenders(checkpoint, infini, Plan(lengths=(1_024, 8_192, 16_384)))
    alike = ["infini", "infini, memory off", "window 64 by 64"]
    shuffled = "infini, shuffled"
    assert [one.name for one in rivals.answering(8_192)] == [*alike, shuffled, "full_attention"]
    assert [one.name for one in rivals.answering(16_384)] == [*alike, shuffled]
    lengths = [1_024, 8_192, 16_384]
    reading = [(one.name, fits) for one, fits in rivals.reading()]
    assert reading == [*((name, lengths) for name in alike), ("full_attention", [1_024, 8_192])]


def test_full_attention_forgets_nothing(checkpoint: Checkpoint, infini: LoadedModel) -> None:
    rivals = contenders(checkpoint, infini, Plan(controls=("window", "full_attention"), lengths=(1_024,)))
    _, window, full = rivals.answering(1_024)
    known = []
    for reader in (window, full):
        one, other = ([9] * 20 + [changed] + [9] * 1_003 for changed in (5, 6))
        known.append(torch.equal(*(reader.read(reader.empty(), text).read("hidden") for text in (one, other))))
    assert known == [True, False], "the window alone has forgotten the token"
    assert full.model.decoder.memory.config.evicted(1_024 + ROOM) == 0


@pytest.mark.parametrize("control", CONTROLS)
def test_only_the_controls_that_are_wanted_are_there(checkpoint: Checkpoint, infini: LoadedModel, control: str) -> None:
    assert len(contenders(checkpoint, infini, Plan(controls=(control,))).answering(2_048)) == 2
    assert len(contenders(checkpoint, infini, Plan(controls=())).answering(2_048)) == 1
