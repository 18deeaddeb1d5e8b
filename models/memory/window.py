"""`window`: only the sinks and the ring; what leaves the ring is forgotten (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.config import MemoryConfig, ModelConfig
from models.layers import Far
from models.memory.base import Evicted, Mechanism, Report
from models.state import MemoryState, Spec


class Window:
    """The baseline every memory is measured against, and the base model itself until the first fold."""

    lookahead = 0

    def __init__(self, model: ModelConfig, config: MemoryConfig, dtype: torch.dtype) -> None:
        self.config = config

    def spec(self) -> Spec:
        """Nothing beside the ring."""
        return {}

    def read(self, layer: int, state: MemoryState, folded: Sequence[int]) -> Far | None:
        """Nothing beyond the ring."""
        return None

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Forget."""

    def report(self, state: MemoryState) -> Report:
        """Nothing beside the ring."""
        return Report()


MECHANISM = Mechanism("window", MemoryConfig, Window)
