from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TokenizerError
from models.text_stream import TextStream
from models.tokenizer import Tokenizer


def _run(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[str, bool, list[str]]:
    stream = TextStream(tokenizer, stop)
    parts = [stream.push(token_id) for token_id in ids]
    parts.append(stream.finish())
    return "".join(parts), stream.stopped, parts


@given(ids=st.lists(st.integers(0, 520), max_size=40))
def test_any_tokens_give_the_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert _run(tokenizer, ids)[0] == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_no_character_is_ever_split(tokenizer: Tokenizer, text: str) -> None:
    whole, _, parts = _run(tokenizer, tokenizer.encode(text))
    assert whole == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


def test_characters_come_as_soon_as_they_are_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")
    assert len(ids) == 4
    assert _run(tokenizer, ids)[2] == ["", "", "", "🙂", ""]
    assert _run(tokenizer, ids[:2])[2] == ["", "", "\ufffd"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert _run(tokenizer, [*tokenizer.encode("bake"), 2, 0])[0] == "bake"


@given(
    text=st.lists(st.sampled_from(["ba", "ke", " lo", "mi", "é", "a"]), max_size=12).map("".join),
    stops=st.lists(st.text("bakeé ", min_size=1, max_size=3), max_size=3).map(tuple),
)
def test_stop_strings_across_tokens(tokenizer: Tokenizer, text: str, stops: tuple[str, ...]) -> None:
    """The reference reads character by character; where tokens end must make no difference."""
    expected, stopped = text, False
    for end in range(1, len(text) + 1):
        matched = [stop for stop in stops if text[:end].endswith(stop)]
        if matched:
            expected, stopped = text[: end - max(map(len, matched))], True
            break
    assert _run(tokenizer, tokenizer.encode(text), stops)[:2] == (expected, stopped)


def test_the_stop_string_that_ends_first_wins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ba")
    assert len(ids) == 1  # both stop strings end within one token
    assert _run(tokenizer, [*tokenizer.encode("x"), *ids], ("xba", "b"))[0] == "x"


def test_only_a_possible_beginning_is_held_back(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("\n\nQ", "###"))
    parts = [stream.push(token_id) for char in "a\nb\n\nQzz" for token_id in tokenizer.encode(char)]
    assert parts == ["a", "", "\nb", "", "", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_was_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    assert _run(tokenizer, tokenizer.encode("ab##"), ("###",))[:2] == ("ab##", False)


def test_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="empty"):
        TextStream(tokenizer, ("",))
