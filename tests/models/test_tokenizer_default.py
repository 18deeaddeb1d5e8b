"""The default model's tokenizer, beside transformers' own reading of the same file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint
from models.weights.hub import DEFAULT_MODEL, locate

pytestmark = pytest.mark.model

TEXTS = (
    "Hello, world! It's 7 o'clock.",
    "🙂👩‍👩‍👧‍👦 emoji 🇫🇷 x",
    "漢字かな混じり文。次の行\n　全角",
    "def f(x):\n\treturn x**y  # code\n\n\n    pass",
    "Donaudampfschifffahrtsgesellschaft" * 60,
    "  leading and trailing  ",
    "\n\n\t tabs \r\n and\rreturns",
    "nul \x00 inside",
    "e\u0301 combining \u0308 marks",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.of(load_checkpoint(DEFAULT_MODEL).tokenizer)


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    path = locate(DEFAULT_MODEL).path
    loaded = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers(text: str, tokenizer: Tokenizer, reference: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    """transformers ignores this rule of the pre-tokenizer `smollm`; the model was trained with it."""
    ids = tokenizer.encode("year 2024, 3.14")
    words = [tokenizer.token_text(token_id) for token_id in ids]
    assert words == ["year", " ", "2", "0", "2", "4", ",", " ", "3", ".", "1", "4"]


def test_template(tokenizer: Tokenizer, reference: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "Hi there 🙂"}, {"role": "assistant", "content": "Hello."}]
    text = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode_chat(chat, turn="none", first=True, add_generation_prompt=True)
    assert "named SmolLM" in text
    assert ids == reference.encode(text, add_special_tokens=False)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, frozenset({0, 2}), False)


PIECES = st.sampled_from(
    [
        "The",
        " cat",
        "'s",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "7",
        " 42",
        ".",
        "!?",
        "é",
        "漢",
        "🙂",
        "\u0301",
        "a\nb",
        "\r\n",
    ]
)


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), sizes=st.lists(st.integers(1, 15), max_size=20))
def test_tokens_do_not_depend_on_arrival(tokenizer: Tokenizer, pieces: list[str], sizes: list[int]) -> None:
    text, opened, at = "".join(pieces), "", 0
    ids: list[int] = []
    for size in [*sizes, len("".join(pieces))]:
        settled, opened = tokenizer.split_settled(opened + text[at : at + size])
        at += size
        ids += tokenizer.encode(settled, start=not ids)
    assert ids + tokenizer.encode(opened, start=not ids) == tokenizer.encode(text)


def test_sentences_end_with_full_stops_line_ends_and_turns(tokenizer: Tokenizer) -> None:
    ends = set(tokenizer.sentence_ends)
    assert tokenizer.eos_ids <= ends
    for text in ("Yes.", "No!", "Why?", "a line\n"):
        assert tokenizer.encode(text)[-1] in ends
    assert not ends.intersection(tokenizer.encode("One of the special magic numbers for Viola is: 1234567, and"))
    assert len(ends) < 1000
