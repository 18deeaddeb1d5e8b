"""Longer when it is time, and not before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.adapt.curriculum import Curriculum
from models.adapt.settings import TrainSettings
from models.errors import ConfigError


def curriculum(**changes: float) -> Curriculum:
    return Curriculum(TrainSettings(first_segments=2, last_segments=4, patience=3, **changes))  # type: ignore[arg-type]


def test_it_grows_by_one_segment_when_the_mean_of_the_last_steps_suffices() -> None:
    course = curriculum()
    for accuracy in (1.0, 0.95, 0.5, 0.9, 1.0):
        course.note(accuracy)
        assert course.segments == 2
    course.note(0.9)
    assert course.segments == 3
    assert course.accuracy == 0, "what was reached with shorter sequences says nothing about these"


def test_it_is_done_only_with_the_longest() -> None:
    course = curriculum()
    for _ in range(6):
        assert not course.done
        course.note(1.0)
    assert course.segments == 4
    for _ in range(3):
        assert not course.done
        course.note(1.0)
    assert course.done
    course.note(0.5)
    assert course.segments == 4
    assert not course.done


def test_it_goes_on_from_what_was_saved() -> None:
    course, other = curriculum(), curriculum()
    for accuracy in (1.0, 1.0, 1.0, 0.7, 0.8):
        course.note(accuracy)
    other.load(course.save())
    assert (other.segments, other.accuracy) == (3, 0.75)


def test_about_half_of_the_steps_are_as_long_as_possible_and_none_is_longer() -> None:
    course = curriculum()
    for _ in range(6):
        course.note(1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [course.draw(generator) for _ in range(600)]
    assert set(drawn) == {2, 3, 4}
    assert 340 < drawn.count(4) < 460


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"first_segments": 0}, "at least one segment"),
        ({"first_segments": 3}, "no more than it ends with"),
        ({"steps": 0}, "steps of a training"),
        ({"truncate": -1}, "truncate of a training"),
        ({"carry": 1.1}, "carry of a training"),
        ({"memory_learning_rate": 0.0}, "memory_learning_rate of a training"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TrainSettings(**{"first_segments": 1, "last_segments": 2, **wrong})
