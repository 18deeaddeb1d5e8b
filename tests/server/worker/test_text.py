from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint
from server.errors import InvalidRequest
from server.messages import ChatMessage
from server.worker.text import Intake, Standing, TextReader

NOTHING = Standing(begun=False, open_text="", turn="none")
USER = ChatMessage(role="user", content="kelo rati?")
ASSISTANT = ChatMessage(role="assistant", content="nura.")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.of(load_checkpoint(str(tiny_model)).tokenizer)


@pytest.fixture(scope="module")
def reader(tokenizer: Tokenizer) -> TextReader:
    return TextReader(tokenizer)


def after(standing: Standing, intake: Intake) -> Standing:
    begun = standing.begun or bool(intake.tokens)
    return Standing(begun=begun, open_text=intake.open_text, turn=intake.turn)


@given(st.lists(st.text(alphabet="ab ke\n👩\u200d👦é<|im_end|>", min_size=1), min_size=1, max_size=8))
def test_tokens_do_not_depend_on_the_cutting(reader: TextReader, tokenizer: Tokenizer, pieces: list[str]) -> None:
    standing, tokens, open_tokens = NOTHING, list[int](), 0
    for piece in pieces:
        intake = reader.text(standing, piece)
        tokens += intake.tokens
        open_tokens = intake.open_tokens
        standing = after(standing, intake)
    whole = tokenizer.encode("".join(pieces))
    assert len(tokens) + open_tokens == len(whole)
    assert tokens + reader.prompt(standing, None, None).tokens == whole


def test_messages_behind_text_take_its_open_end_with_them(reader: TextReader, tokenizer: Tokenizer) -> None:
    text = reader.text(NOTHING, "kelo rati")
    intake = reader.messages(after(NOTHING, text), [USER])
    assert (intake.open_text, intake.open_tokens, intake.turn) == ("", 0, "asked")
    tokens = text.tokens + intake.tokens
    assert tokens[: len(tokenizer.encode("kelo rati"))] == tokenizer.encode("kelo rati")


@pytest.mark.parametrize(("messages", "turn"), [([USER], "asked"), ([ASSISTANT], "none"), ([USER, ASSISTANT], "none")])
def test_a_question_waits_for_its_answer(reader: TextReader, messages: list[ChatMessage], turn: str) -> None:
    assert reader.messages(NOTHING, messages).turn == turn


def test_a_prompt_after_a_question_is_text(reader: TextReader, tokenizer: Tokenizer) -> None:
    asked = after(NOTHING, reader.messages(NOTHING, [USER]))
    answer, text = reader.prompt(asked, None, None), reader.prompt(asked, "kelo", None)
    assert answer.turn == "open"
    assert answer.tokens == tokenizer.encode_template("<|im_start|>assistant\n")
    assert text == Intake(tokenizer.encode("kelo", start=False), "", 0, "none")


@pytest.mark.parametrize(("turn", "closing"), [("open", "<|im_end|>\n"), ("ended", "\n"), ("none", "")])
def test_a_message_closes_the_turn_before_it(reader: TextReader, tokenizer: Tokenizer, turn: str, closing: str) -> None:
    standing = Standing(begun=True, open_text="", turn=turn)  # type: ignore[arg-type]
    expected = tokenizer.encode_template(closing + "<|im_start|>user\nkelo rati?<|im_end|>\n")
    assert reader.messages(standing, [USER]).tokens == expected


def test_text_that_is_no_unicode_is_refused(reader: TextReader) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        reader.prompt(NOTHING, "\ud800", None)
    with pytest.raises(InvalidRequest, match="Unicode"):
        reader.messages(NOTHING, [ChatMessage(role="user", content="\ud800")])
