"""What a course is: one model, what it learns, and how it is examined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel, build_small
from models.adapt.tasks.base import Task
from models.transformer import Decoder


@dataclass(frozen=True)
class Ring:
    """The exact local window of a course, in tokens. There are no sinks, in which the beginning would stay in sight."""

    window: int = 8
    segment: int = 8


@dataclass(frozen=True)
class Course:
    """One training and its examinations: `lengths` in tokens, each with `trials` sequences of `examined`, the task if None.

    `setting` tells apart courses that give the same task to other models; `control` is the mechanism that takes the same
    course for comparison.
    """

    mechanism: str
    variant: str
    task_name: str
    task: Task
    lengths: tuple[int, ...]
    train: TrainSettings
    before: TrainSettings | None = None
    """A training before that of `train`: of shorter sequences, say."""
    after: TrainSettings | None = None
    """A training behind that of `train`, with lower rates, for a mechanism that would go on wavering; its control has none."""
    ring: Ring = Ring()
    model: SmallModel = field(default_factory=SmallModel)
    options: Mapping[str, Any] = field(default_factory=dict)
    examined: Task | None = None
    trials: int = 256
    ahead: int = 0
    """How far ahead of the question memories are exchanged between sessions, in tokens."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates that the mechanism wants to have otherwise than `train` has them; the control keeps to `train`."""
    setting: str = ""
    control: str = "window"

    @property
    def name(self) -> str:
        """As it is chosen and reported."""
        return " ".join(part for part in (self.task_name, self.setting, self.mechanism, self.variant) if part)

    def as_control(self) -> Course:
        """The same course for the control."""
        return replace(self, mechanism=self.control, variant="", options={}, rates={}, after=None)

    @property
    def trainings(self) -> tuple[TrainSettings, ...]:
        """How its model is trained, one after the other."""
        changes: dict[str, Any] = dict(self.rates)
        stages = (self.before, self.train, self.after)
        return tuple(replace(stage, **changes) for stage in stages if stage is not None)

    def build(self) -> Decoder:
        """Its model, before any training."""
        ring = {"window": self.ring.window, "segment": self.ring.segment, "sinks": 0}
        return build_small(self.model, self.task.vocab_size, self.mechanism, ring | dict(self.options))


def with_controls(courses: tuple[Course, ...]) -> tuple[Course, ...]:
    """The courses in order, the control of each once and before it."""
    ordered: list[Course] = []
    for course in courses:
        for one in (course.as_control(), course):
            if one not in ordered:
                ordered.append(one)
    return tuple(ordered)
