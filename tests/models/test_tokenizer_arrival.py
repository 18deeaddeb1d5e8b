"""However a text arrives, its tokens are those of the whole."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tokenizer import Tokenizer, TokenizerSource
from tests.models.vocabularies import byte_level, sentencepiece

ARRIVALS = st.lists(st.integers(1, 12), max_size=30)
PIECES = st.sampled_from(
    [
        "ba",
        " ke",
        "lo ",
        "\n",
        " ",
        "12",
        ".",
        "'s",
        "é",
        "漢",
        "🙂",
        "\t",
        "<|im_end|>",
        "a",
        "\u0301",
        "a\nb",
    ]
)


def _arrive(tokenizer: Tokenizer, text: str, sizes: list[int]) -> list[int]:
    ids: list[int] = []
    opened, start, at = "", True, 0
    for size in [*sizes, len(text)]:
        settled, opened = tokenizer.split_settled(opened + text[at : at + size])
        at += size
        if settled:
            ids += tokenizer.encode(settled, start=start)
            start = False
    return ids + (tokenizer.encode(opened, start=start) if opened or start else [])


@given(text=st.lists(PIECES, max_size=40).map("".join), sizes=ARRIVALS)
def test_tokens_do_not_depend_on_arrival(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    assert _arrive(tokenizer, text, sizes) == tokenizer.encode(text)


@given(text=st.text("ab lo\nc é", max_size=60), sizes=ARRIVALS)
def test_sentencepiece_tokens_do_not_depend_on_arrival(text: str, sizes: list[int]) -> None:
    tokenizer = sentencepiece()
    assert _arrive(tokenizer, text, sizes) == tokenizer.encode(text)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_every_way_to_cut_words_allows_the_boundaries(pre: str, tokenizer_source: TokenizerSource) -> None:
    tokenizer = byte_level(tokenizer_source, pre)

    @given(text=st.lists(PIECES, max_size=40).map("".join), sizes=ARRIVALS)
    def check(text: str, sizes: list[int]) -> None:
        assert _arrive(tokenizer, text, sizes) == tokenizer.encode(text)

    check()


def test_runs_without_a_boundary_do_not_depend_on_arrival(tokenizer: Tokenizer) -> None:
    text = "ba ke " + "bakelominu" * 1300 + " lo\n" + "漢" * 9000
    whole = tokenizer.encode(text)
    for sizes in ([4096] * 5, [1000] * 20, [5000, 1, 1, 4095, 7000], [17] * 1200):
        assert _arrive(tokenizer, text, sizes) == whole
    assert tokenizer.decode(whole) == text


def test_a_vocabulary_with_tokens_across_words_is_not_cut_there(tokenizer_source: TokenizerSource) -> None:
    description = json.loads(tokenizer_source.tokenizer_json)
    description["model"]["vocab"]["aĠb"] = len(description["model"]["vocab"])
    wide = Tokenizer.of(
        replace(tokenizer_source, tokenizer_json=json.dumps(description), vocab_size=tokenizer_source.vocab_size + 1)
    )
    assert wide.split_settled("a b\nc") == ("a b\n", "c")
