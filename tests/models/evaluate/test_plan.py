"""What cannot be measured is refused before anything is."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import ConfigError
from models.evaluate.plan import Plan


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": ("passkey", "sudoku")}, "no task is called sudoku; there are passkey, needle"),
        ({"controls": ("placebo",)}, "no control is called placebo; there are memory_off, shuffled"),
        ({"lengths": (4_096, 100)}, "the shortest is 1,024"),
        ({"lengths": ()}, "the shortest is 1,024"),
        ({"trials": 0}, "trials must be 1 or more, not 0"),
    ],
)
def test_a_plan_that_cannot_work_says_why(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan(**wrong)


def test_a_book_must_be_as_long_as_the_longest_text() -> None:
    plan = Plan(lengths=(1_024, 2_048))
    plan.check_book(2_048)
    with pytest.raises(ConfigError, match="2,047 tokens, too few for the length 2,048"):
        plan.check_book(2_047)


def test_what_is_left_out_is_said_with_the_reason() -> None:
    assert list(Plan(lengths=(8_192, 16_384)).left_out()) == [
        "full_attention is left out at 16,384 tokens: it is measured up to 8,192",
        "shuffled is left out of nll: memories are exchanged before a question, and nothing is asked there",
    ]
    assert not list(Plan(lengths=(8_192,), controls=("full_attention", "window")).left_out())
    assert not list(Plan(lengths=(16_384,), tasks=("passkey",), controls=("shuffled",)).left_out())
