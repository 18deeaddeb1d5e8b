"""`window`: only the sinks and the ring; what leaves the ring is forgotten (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

import torch

from models.asked import Asked, Beside, Far
from models.config import MemoryConfig, ModelConfig
from models.memory.base import Evicted, Mechanism, Memory
from models.state import MemoryState, Spec


class Window(Memory):
    """The baseline every memory is measured against, and the base model itself until the first fold."""

    still = True

    def __init__(self, model: ModelConfig, config: MemoryConfig, dtype: torch.dtype) -> None:
        super().__init__(config)

    def spec(self) -> Spec:
        """Nothing beside the ring."""
        return {}

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return False

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """Nothing beyond the ring."""
        return None

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Forget."""


MECHANISM = Mechanism("window", MemoryConfig, Window)
