"""The tiny model with `feedback` whose gates are open."""

from __future__ import annotations

from typing import Any

import torch

from models.memory.feedback import Feedback, FeedbackConfig
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import build

OPEN = 40.0
"""A gate that takes nothing away: the paper's model."""


def settings(**changes: Any) -> FeedbackConfig:
    return FeedbackConfig(**{"window": 32, "segment": 16, "sinks": 4, "tokens": 6, "gate_init": OPEN, **changes})


def opened(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
    return build(checkpoint, settings(**changes), dtype)


def feedback_of(decoder: Decoder) -> Feedback:
    assert isinstance(decoder.memory, Feedback)
    return decoder.memory
