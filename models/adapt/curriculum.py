"""How long the sequences are that a model trains on: as long as it can manage, and then one segment more.

Half of the steps take the longest sequences there are so far, and only they count for the accuracy. The others take any
length up to it, so that what is near is not unlearned; that is cheaper, too.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from models.adapt.settings import TrainSettings


class Curriculum:
    """Keeps the accuracies of the last steps at one length, and decides when to lengthen and when to stop."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._recent: deque[float] = deque(maxlen=settings.patience)
        self.segments = settings.first_segments

    def draw(self, generator: torch.Generator) -> int:
        """How many segments the next sequences have."""
        if float(torch.rand((), generator=generator)) < 0.5:
            return self.segments
        return int(torch.randint(self._settings.first_segments, self.segments + 1, (), generator=generator))

    def note(self, accuracy: float) -> None:
        """Take in the accuracy of one step of the longest sequences; grow by a segment when those of the last steps suffice."""
        self._recent.append(accuracy)
        if self.segments < self._settings.last_segments and self._reached(self._settings.advance_at):
            self.segments += 1
            self._recent.clear()

    @property
    def done(self) -> bool:
        """Whether the longest sequences are mastered."""
        return self.segments == self._settings.last_segments and self._reached(self._settings.stop_at)

    @property
    def accuracy(self) -> float:
        """The mean over the last steps at this length; 0 before there are any."""
        return sum(self._recent) / len(self._recent) if self._recent else 0.0

    def save(self) -> dict[str, Any]:
        """What `load` needs to go on from here."""
        return {"segments": self.segments, "recent": list(self._recent)}

    def load(self, saved: dict[str, Any]) -> None:
        """The reverse of `save`."""
        self.segments = saved["segments"]
        self._recent.clear()
        self._recent.extend(saved["recent"])

    def _reached(self, level: float) -> bool:
        return len(self._recent) == self._settings.patience and self.accuracy >= level
