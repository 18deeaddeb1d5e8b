"""Text to tokens and back, beside transformers' own reading of the same files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models.errors import TokenizerError
from models.tokenizer import Tokenizer, TokenizerSource
from tests.models.vocabularies import byte_level

Chat = list[dict[str, str]]
TEXTS = (
    "",
    "Hello, world!",
    "🙂👩‍👩‍👧‍👦 emoji 🇫🇷",
    "漢字かな混じり文。次の行\n　全角",
    "def f(x):\n\treturn x**2  # code\n\n\n    pass",
    "x" * 4000,
    "1234567890 3.14 ½ ٣",
    "  leading and trailing  ",
    "\n\n\t tabs \r\n and\rreturns",
    "nul \x00 inside",
    "e\u0301 combining \u0308 marks",
    "Don't can't I'LL we've",
    "<|im_star <|im_|im_end|> end|>",
)
CHATS: tuple[Chat, ...] = (
    [{"role": "user", "content": "Hi there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 12 \n"}],
    [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "漢🙂"},
        {"role": "user", "content": "?"},
    ],
)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> PreTrainedTokenizerFast:
    loaded = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_equals_transformers(text: str, tokenizer: Tokenizer, reference: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
def test_chat_equals_transformers(
    chat: Chat, prompt: bool, tokenizer: Tokenizer, reference: PreTrainedTokenizerFast
) -> None:
    text = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.render(chat, add_generation_prompt=prompt) == text
    ids = tokenizer.encode_chat(chat, turn="none", first=True, add_generation_prompt=prompt)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert ids == tokenizer.encode_template(text)


@given(text=st.text(max_size=60))
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_by_pre_tokenizer(tokenizer_source: TokenizerSource) -> None:
    """One token a digit for SmolLM2 and Qwen2, whatever the merges are."""
    for pre in ("smollm", "qwen2"):
        assert len(byte_level(tokenizer_source, pre).encode("2024")) == 4
    assert len(byte_level(tokenizer_source, "gpt-2").encode("2024")) < 4


def test_bos_follows_the_post_processor_unless_told(tokenizer_source: TokenizerSource) -> None:
    description = json.loads(tokenizer_source.tokenizer_json)
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    adding = replace(tokenizer_source, tokenizer_json=json.dumps(description))
    assert Tokenizer.of(adding).encode("ba")[0] == 1
    assert Tokenizer.of(adding).encode("ba", start=False)[0] != 1
    assert Tokenizer.of(replace(adding, adds_bos=False)).encode("ba")[0] != 1
    assert Tokenizer.of(adding).encode_template("ba")[0] != 1


def test_token_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_text(2) == "<|im_end|>"
    assert tokenizer.token_text(tokenizer.encode("é")[0]) == "\ufffd"
    assert tokenizer.token_text(10_000) == ""
    assert tokenizer.token_text(-1) == ""


def test_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="Unicode"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"model": {"type": "Nonsense"}}'])
def test_broken_descriptions(broken: str, tokenizer_source: TokenizerSource) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.of(replace(tokenizer_source, tokenizer_json=broken))


def test_more_tokens_than_the_model_has(tokenizer_source: TokenizerSource) -> None:
    with pytest.raises(TokenizerError, match="do not belong together"):
        Tokenizer.of(replace(tokenizer_source, vocab_size=499))
