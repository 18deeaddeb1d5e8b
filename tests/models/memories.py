"""One row for each variant of each mechanism: test_exactness.py and test_invariants.py in `memory` run over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from models.config import MemoryConfig
from models.memory.compressive import CompressiveConfig
from models.memory.continuous import ContinuousConfig
from models.memory.feedback import FeedbackConfig
from models.memory.infini import InfiniConfig
from models.memory.memorizing import MemorizingConfig
from models.memory.transformer_xl import TransformerXLConfig
from tests.models.references.compressive import CompressiveReference
from tests.models.references.continuous import ContinuousReference
from tests.models.references.feedback import FeedbackReference
from tests.models.references.infini import InfiniReference
from tests.models.references.memorizing import MemorizingReference
from tests.models.references.slots import SlotsReference
from tests.models.references.transformer_xl import TransformerXLReference
from tests.models.references.window import Reference
from tests.models.sessions import slots_config, window_config


@dataclass(frozen=True)
class Row:
    """A variant: its settings for the tiny model, and its slow reference.

    `differentiable` is False where the mechanism chooses by comparing, and nobody trains it.
    """

    config: MemoryConfig
    reference: type[Reference]
    differentiable: bool = True


def each(rows: Mapping[str, Row]) -> pytest.MarkDecorator:
    """Run a test, which takes a `row`, once for each of them."""
    return pytest.mark.parametrize("row", rows.values(), ids=rows.keys())


def infini_config(**changes: Any) -> InfiniConfig:
    """A ring of 48 tokens."""
    return InfiniConfig(**{"window": 32, "segment": 16, "sinks": 4, **changes})


def continuous_config(**changes: Any) -> ContinuousConfig:
    """A ring of 48 tokens, and wide functions for a signal of few points."""
    small = {"window": 32, "segment": 16, "sinks": 4, "basis": 24, "samples": 20, "widths": (0.03, 0.06), "bins": 10}
    return ContinuousConfig(**{**small, **changes})


ROWS: Mapping[str, Row] = {
    "window": Row(window_config(), Reference),
    "window without sinks": Row(window_config(sinks=0), Reference),
    "transformer_xl": Row(TransformerXLConfig(32, 16), TransformerXLReference),
    "compressive, mean": Row(CompressiveConfig(32, 16, 4, entries=17), CompressiveReference),
    "compressive, max": Row(CompressiveConfig(32, 16, 0, compression="max", entries=400), CompressiveReference),
    "compressive, conv": Row(
        CompressiveConfig(32, 16, 6, layers=(1, 3), compression="conv", entries=18), CompressiveReference
    ),
    "compressive, conv without the task": Row(
        CompressiveConfig(32, 16, 16, rate=2, compression="conv", entries=33, task_gradient=False), CompressiveReference
    ),
    "compressive, sharpened": Row(CompressiveConfig(32, 16, 4, entries=40, sharpen_beyond=3), CompressiveReference),
    "memorizing, softmax": Row(MemorizingConfig(32, 16, 4, entries=70, top_k=12), MemorizingReference),
    "memorizing, learned": Row(
        MemorizingConfig(32, 16, 3, layers=(1, 2), entries=66, top_k=7, gate="learned"), MemorizingReference
    ),
    "slots": Row(slots_config(), SlotsReference, differentiable=False),
    "slots of four bits": Row(slots_config(slot_dtype="int4"), SlotsReference, differentiable=False),
    "slots that foretell": Row(
        slots_config(importance="learned", listens=1, slots=20), SlotsReference, differentiable=False
    ),
    "slots of four bits that foretell, a segment of sinks": Row(
        slots_config(importance="learned", listens=3, slot_dtype="int4", sinks=16), SlotsReference, differentiable=False
    ),
    "slots of what was said last": Row(
        slots_config(importance="learned", listens=2, ends=tuple(range(0, 256, 6))),
        SlotsReference,
        differentiable=False,
    ),
    "feedback": Row(FeedbackConfig(32, 16, 4, tokens=6), FeedbackReference),
    "feedback, limited": Row(FeedbackConfig(32, 16, 4, tokens=3, limit=1.0), FeedbackReference),
    "feedback, gated": Row(
        FeedbackConfig(32, 16, 4, tokens=5, limit=2.0, gated=True, write_init=0.5), FeedbackReference
    ),
    "feedback, gated, initial carried": Row(
        FeedbackConfig(32, 16, 4, tokens=5, limit=2.0, gated=True, write_init=0.5, carry_initial=True),
        FeedbackReference,
    ),
    "feedback, gated, initial carried, beside the ring": Row(
        FeedbackConfig(
            32,
            16,
            4,
            tokens=5,
            limit=2.0,
            gated=True,
            write_init=0.5,
            carry_initial=True,
            join="gate",
            feed_forward=False,
        ),
        FeedbackReference,
    ),
    "feedback, some layers": Row(FeedbackConfig(32, 16, 0, layers=(1, 3), tokens=15), FeedbackReference),
    "infini linear in two layers": Row(infini_config(rule="linear", layers=(1, 3)), InfiniReference),
    "infini delta": Row(infini_config(rule="delta"), InfiniReference),
    "infini delta, normalised, a segment of sinks": Row(
        infini_config(rule="delta", normalised=True, sinks=16), InfiniReference
    ),
    "infini delta, own projections": Row(infini_config(rule="delta", layers=(1, 2), projections=True), InfiniReference),
    "infini gated delta": Row(infini_config(rule="gated_delta", decay_init=0.02), InfiniReference),
    "infini gated delta that never fades": Row(
        infini_config(rule="gated_delta", decay_init=0.0, write_init=0.5), InfiniReference
    ),
    "infini gated delta that leaves most tokens out": Row(
        infini_config(rule="gated_delta", decay_init=0.0, write_init=0.5, write_floor=0.5), InfiniReference
    ),
    "continuous": Row(continuous_config(), ContinuousReference),
    "continuous in two layers, a segment of sinks": Row(
        continuous_config(sinks=16, layers=(1, 3), tau=0.75, ridge=1.0, samples=31), ContinuousReference
    ),
    "continuous, sticky": Row(
        continuous_config(sticky=True, sinks=0, tau=0.75, widths=(0.04,), bins=7), ContinuousReference
    ),
    "continuous, gibbs": Row(continuous_config(density="gibbs", layers=(0, 2)), ContinuousReference),
    "continuous, gibbs, gated": Row(
        continuous_config(density="gibbs", gated=True, write_init=0.1, sinks=16), ContinuousReference
    ),
    "continuous, gated": Row(continuous_config(gated=True, write_init=0.3), ContinuousReference),
}
