"""A reader says what the decoder says, greedily."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.evaluate.reading import Reader
from models.load import LoadedModel
from tests.models.sessions import assert_same_bits, bits, greedy


def test_an_answer_is_the_greedy_continuation_and_the_session_stays_as_it_is(own: Reader, text: list[int]) -> None:
    state = own.read(own.empty(), text)
    before, question = bits(state), text[:7]
    expected = greedy(own.model.decoder, own.read(state.clone(), question), 12)
    assert own.answer(state, question, 12) == expected
    assert_same_bits(bits(state), before)


def test_an_answer_ends_where_the_model_ends_its_turn(
    own: Reader, infini: LoadedModel, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = own.read(own.empty(), text)
    answer = own.answer(state, text[:7], 12)
    monkeypatch.setattr(infini.tokenizer, "eos_ids", frozenset(answer[5:6]))
    assert own.answer(state, text[:7], 12) == answer[: answer.index(answer[5])]


def test_losses_are_those_of_one_call_over_the_whole_text(own: Reader, text: list[int]) -> None:
    tokens = torch.tensor([text[:900]])
    with torch.inference_mode():
        logits, _ = own.model.decoder(tokens[:, :-1], own.empty(), logits="all")
    expected = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="none")
    torch.testing.assert_close(own.losses(text[:900]), expected, rtol=1e-4, atol=1e-4)


def test_bytes_are_those_of_a_session(own: Reader, infini: LoadedModel) -> None:
    assert own.state_bytes == own.empty().nbytes
    assert own.name == "infini linear"
    assert Reader("named", dataclasses.replace(infini)).name == "named"
