"""Numbered texts, no two of them alike: one that is missing, or there twice, makes another history."""

from __future__ import annotations

import random

_SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "zu"]


def numbered_text(author: str, number: int, words: int) -> str:
    """`words` made-up words behind the author's name and the number; the same for the same arguments."""
    choose = random.Random(f"{author}/{number}/{words}")
    said = ("".join(choose.choices(_SYLLABLES, k=choose.randint(1, 4))) for _ in range(words))
    return f"{author} {number}: {' '.join(said)}.\n"
