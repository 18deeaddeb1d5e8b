"""The demo's text has every fact once, and its pieces are the whole of it."""

from __future__ import annotations

import pytest

from bench.demo.story import CHARACTERS_A_TOKEN, INTERRUPTED, PIECE, write_story


@pytest.mark.parametrize(("tokens", "facts"), [(1, 1), (20_000, 8), (20_000, 9)])
def test_every_fact_is_in_the_text_once(tokens: int, facts: int) -> None:
    story = write_story(tokens, facts, seed=3)
    assert len({fact.question for fact in story.facts}) == facts
    for fact in story.facts:
        assert story.text.count(fact.sentence) == 1
        assert fact.sentence == f"{fact.question}{fact.answer}."
    assert len({fact.answer[:2] for fact in story.facts}) == facts


def test_facts_are_spread_over_the_text() -> None:
    story = write_story(20_000, 8, seed=3)
    places = [story.text.index(fact.sentence) / len(story.text) for fact in story.facts]
    assert places == pytest.approx([(index + 0.5) / 8 for index in range(8)], abs=0.02)


def test_the_first_fact_is_read_before_the_crash() -> None:
    assert write_story(20_000, 8, seed=3).facts[0].sentence in "".join(write_story(20_000, 8, seed=3).before)


def test_the_text_is_long_enough_and_cut_as_announced() -> None:
    story = write_story(20_000, 8, seed=3)
    assert len(story.text) >= 20_000 * CHARACTERS_A_TOKEN
    assert len(story.interrupted) == INTERRUPTED
    assert all(0 < len(piece) <= PIECE for piece in [*story.before, *story.after])


def test_seeds_make_different_texts() -> None:
    assert write_story(1, 1, seed=1) == write_story(1, 1, seed=1)
    assert write_story(1, 1, seed=1).text != write_story(1, 1, seed=2).text
