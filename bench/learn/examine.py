"""One course from beginning to end: a model is trained, then examined beside its controls."""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.learn.course import Course
from models.adapt.evaluate import Trials, accuracy, folds_behind, shuffled_accuracy, without_memory
from models.adapt.train import Trainer
from models.state import spec_nbytes
from models.transformer import Decoder

Row = dict[str, Any]


def use_one_thread() -> None:
    """Each course has a process of its own: more threads would only take turns."""
    torch.set_num_threads(1)


def take(course: Course) -> list[Row]:
    """Train and examine; one row for each length, without the figure of the control. Seconds are of processor time."""
    decoder = course.build()
    began = time.process_time()
    trained = [Trainer(decoder, course.task, settings).run() for settings in course.trainings]
    seconds = time.process_time() - began
    return [
        {
            "mechanism": course.mechanism,
            "variant": course.variant,
            "task": course.task_name,
            "setting": course.setting,
            "length": length,
            "folds": _folds(course, decoder, length),
            **_figures(course, decoder, length),
            "window_only": None,
            "chance": round(course.task.chance, 4),
            "steps": sum(progress.step for progress in trained),
            "segments": trained[-1].segments,
            "seconds": round(seconds, 1),
            "seed": course.train.seed,
            "state_bytes": spec_nbytes(decoder.spec()),
        }
        for length in course.lengths
    ]


def _folds(course: Course, decoder: Decoder, length: int) -> int:
    """Folds between the one that took the sequence's first tokens and the first question."""
    batch = (course.examined or course.task).batch(torch.Generator().manual_seed(0), 1, length)
    return folds_behind(decoder.memory.config, length, length - batch.question)


def _figures(course: Course, decoder: Decoder, length: int) -> Row:
    """Accuracy as it is, with the memory unread, and with another session's memory."""
    task, trials = course.examined or course.task, Trials(length, count=course.trials, ahead=course.ahead)
    return {
        "accuracy": round(accuracy(decoder, task, trials), 4),
        "memory_off": round(accuracy(without_memory(decoder), task, trials), 4),
        "shuffled": round(shuffled_accuracy(decoder, task, trials), 4),
    }
