"""What memories are taught on: facts that have nothing in common with those they are judged by."""

from __future__ import annotations

import random

from models.lessons import LESSONS, lesson, lessons, said_anew, wording
from models.probes import FACTS


def test_no_wording_is_one_that_memories_are_judged_by() -> None:
    judged = {template.sentence for template in FACTS} | {template.cue for template in FACTS}
    taught = {template.sentence for template in LESSONS} | {template.cue for template in LESSONS}
    assert not judged & taught


def test_no_question_begins_as_one_that_memories_are_judged_by() -> None:
    for taught in LESSONS:
        for judged in FACTS:
            assert not taught.cue.startswith(judged.cue), taught
            assert not judged.cue.startswith(taught.cue), taught


def test_a_sentence_says_what_its_question_asks() -> None:
    source = random.Random(0)
    for _ in range(300):
        one = lesson(source)
        assert one.answer.strip() in one.sentence
        assert one.answer.startswith(" ")
        assert one.answer.strip() not in one.question


def test_lessons_of_one_text_are_about_different_people() -> None:
    drawn = lessons(random.Random(1), 14)
    names = [{word.strip(".?:") for word in one.question.split() if word[0].isupper()} for one in drawn]
    common = set.intersection(*names) if names else set()
    assert not common - {"The", "Question", "Answer"}
    assert len({one.question for one in drawn}) == 14


def test_more_lessons_than_people_tell_nobody_the_same_twice() -> None:
    drawn = lessons(random.Random(2), 120, 24)
    assert len(drawn) == 144
    assert len({wording(one) for one in drawn}) == 144
    assert all(one.answer.strip().isdigit() for one in drawn[-24:])


def test_the_same_seed_draws_the_same() -> None:
    assert lessons(random.Random(5), 6) == lessons(random.Random(5), 6)


def test_what_is_said_anew_has_another_value_and_the_same_words() -> None:
    source = random.Random(3)
    for one in lessons(source, 200, 20):
        newer = said_anew(source, one)
        assert newer.answer != one.answer
        assert newer.question == one.question
        assert wording(newer) == wording(one)
        assert newer.sentence != one.sentence
