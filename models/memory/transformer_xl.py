"""`transformer_xl`: the cached tokens before the current segment are all the memory there is (arXiv 1901.02860).

The paper caches hidden states and computes keys and values from them anew, because its positions are relative. Rotary
embedding makes scores depend on distances alone, so that keys and values can be cached as they are: the ring is this memory. A
query of segment m sees the W tokens before its segment and its segment up to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import MemoryConfig
from models.memory.base import Mechanism
from models.memory.window import Window


@dataclass(frozen=True)
class TransformerXLConfig(MemoryConfig):
    """`window` is the length of the cache. The paper has no sinks."""

    sinks: int = 0

    @property
    def reach(self) -> int:
        """Tokens before its segment that a query of one layer sees for certain."""
        return self.window


class TransformerXL(Window):
    """`Window` without sinks, under its own name. The paper's stop of gradients is `UnrolledState.detached` at segment borders."""


MECHANISM = Mechanism("transformer_xl", TransformerXLConfig, TransformerXL)
