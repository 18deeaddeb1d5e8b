"""Texts with something to remember in them."""

from __future__ import annotations

import random

import pytest

from models.probes import (
    FACTS,
    aside,
    fact,
    needle,
    needles,
    numbers,
    owner_of,
    passkey,
    passkey_haystack,
    plant,
    prose,
    with_asides,
)


def test_the_same_seed_gives_the_same_text() -> None:
    assert prose(random.Random(3), 5_000) == prose(random.Random(3), 5_000)
    assert prose(random.Random(3), 5_000) != prose(random.Random(4), 5_000)


def test_prose_has_about_the_length_asked_for_and_ends_with_a_sentence() -> None:
    text = prose(random.Random(0), 10_000)
    assert 9_000 < len(text) <= 10_001
    assert text.endswith(".\n")


def test_prose_names_no_number_that_a_needle_could_be() -> None:
    assert not any(character.isdigit() for character in prose(random.Random(1), 20_000))


@pytest.mark.parametrize("template", FACTS)
def test_a_fact_is_asked_in_its_own_words(template: object) -> None:
    hidden = fact(random.Random(5), template)  # type: ignore[arg-type]
    assert hidden.sentence.startswith(hidden.question + hidden.answer)


def test_needles_have_different_names() -> None:
    hidden = needles(random.Random(0), 20)
    assert len({one.question for one in hidden}) == 20
    assert all(len(one.answer.strip()) == 7 for one in hidden)


def test_four_numbers_of_one_person_are_asked_for_at_once() -> None:
    said, asked = numbers(random.Random(0))
    assert len({owner_of(one) for one in said}) == 1
    assert owner_of(said[0]) in asked.question
    assert asked.answer.strip().split(", ") == [one.answer.strip() for one in said]
    assert asked.sentence.startswith(asked.question + asked.answer)


def test_a_passkey_is_said_twice_and_asked_for() -> None:
    hidden = passkey(random.Random(0))
    assert hidden.sentence.count(hidden.answer.strip()) == 2
    assert 1 <= int(hidden.answer) <= 50_000
    assert hidden.sentence.startswith(hidden.question.split("? ")[1] + hidden.answer)


def test_asides_have_numbers_and_stand_between_sentences() -> None:
    plain = prose(random.Random(0), 20_000)
    text, source = with_asides(plain, random.Random(1), 500), random.Random(1)
    for _ in range(len(plain) // 500):
        said = aside(source)
        assert any(map(str.isdigit, said))
        assert f"{said} " in text
        text = text.replace(f"{said} ", "", 1)
    assert text == plain


def test_the_filler_is_repeated() -> None:
    assert passkey_haystack(7).count("The grass is green.") == 7


def test_planted_sentences_stand_between_sentences_at_their_depths() -> None:
    text = prose(random.Random(0), 20_000)
    hidden = [needle(random.Random(seed), name) for seed, name in enumerate(("Ida", "Iris", "Linus"))]
    depths = [0.9, 0.1, 0.5]
    planted = plant(text, [one.sentence for one in hidden], depths)
    for one, depth in zip(hidden, depths, strict=True):
        place = planted.index(one.sentence)
        assert planted[:place].rstrip().endswith(".")
        assert place / len(planted) == pytest.approx(depth, abs=0.05)
        planted = planted.replace(one.sentence + " ", "")
    assert planted == text
