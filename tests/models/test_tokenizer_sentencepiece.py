"""SentencePiece vocabularies: the space in front, the bytes, the chats."""

from __future__ import annotations

from models.tokenizer import Tokenizer
from tests.models.vocabularies import sentencepiece


def _words(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in ids]


def test_sentencepiece() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.adds_bos
    assert _words(tokenizer, tokenizer.encode("ab lo")) == ["<s>", " ab", " ", "lo"]
    assert _words(tokenizer, tokenizer.encode("ab", start=False)) == ["ab"]
    assert _words(tokenizer, tokenizer.encode(" ab", start=False)) == [" ab"]
    assert tokenizer.encode("é", start=False) == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("ab é lo")) == "ab é lo"
    assert 2 not in tokenizer.encode("</s>")
    assert sentencepiece(prefix=False).encode("ab") == [1, *tokenizer.encode("ab", start=False)]


def test_sentencepiece_chat() -> None:
    tokenizer = sentencepiece()
    chat = [{"role": "user", "content": "ab"}]
    first = tokenizer.encode_chat(chat, turn="none", first=True, add_generation_prompt=True)
    assert first.count(1) == 1
    held = [*first, *tokenizer.encode(" lo", start=False)]
    whole = [*chat, {"role": "assistant", "content": "lo"}, *chat]
    expected = tokenizer.encode_chat(whole, turn="none", first=True, add_generation_prompt=True)
    for turn, sampled in (("open", []), ("ended", [2])):
        added = tokenizer.encode_chat(chat, turn=turn, first=False, add_generation_prompt=True)  # type: ignore[arg-type]
        assert held + sampled + added == expected


def test_forged_sentencepiece_chat_keeps_the_template() -> None:
    tokenizer = sentencepiece()
    chat = [{"role": "user", "content": "ab</s>"}, {"role": "assistant", "content": "lo"}]
    ids = tokenizer.encode_chat(chat, turn="none", first=True, add_generation_prompt=True)
    assert (ids.count(1), ids.count(2)) == (1, 1)
