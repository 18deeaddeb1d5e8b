"""The baseline keeps nothing beside the ring."""

from __future__ import annotations

from models.memory.base import Report
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import asked_after, build, random_tokens, read, window_config


def test_it_adds_nothing_to_the_state_and_reports_nothing(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, window_config())
    assert decoder.memory.spec() == {}
    _, state = read(decoder, random_tokens(decoder, 100))
    assert decoder.memory.report(state) == Report()
    assert decoder.memory.read(0, state, asked_after(64)) is None
