"""Texts of any length, the same for the same seed."""

from __future__ import annotations

import random

_SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "zu"]
_RARE = ["naïve", "東京", "👩‍👩‍👧‍👦", "🇳🇱🇯🇵", "é", "<|im_end|>", "a  b", "x\n\ny", "…", "supercalifragilistic"]


def plain_text(seed: int, words: int) -> str:
    """Sentences of made-up words, the only ones the tiny model's tokenizer was trained on."""
    choose = random.Random(seed)
    said = ["".join(choose.choices(_SYLLABLES, k=choose.randint(1, 4))) for _ in range(words)]
    return "".join(word + (choose.choice([". ", ",\n", "? "]) if choose.random() < 0.1 else " ") for word in said)


def mixed_text(seed: int, words: int) -> str:
    """The same with emoji sequences, other scripts, runs of blanks and the names of special tokens."""
    choose = random.Random(seed)
    return " ".join(
        choose.choice(_RARE) if choose.random() < 0.3 else word for word in plain_text(seed, words).split(" ")
    )


def cut(text: str, seed: int, longest: int) -> list[str]:
    """The text in pieces of 1 to `longest` characters, cut anywhere."""
    choose = random.Random(seed)
    pieces = []
    while text:
        size = choose.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces
