"""A queue of keys and values, first in, first out, in a session's state: what comes in takes the places of the oldest."""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.base import LayerReport, Report
from models.state import MemoryState, Spec, TensorSpec


class Fifo:
    """For every memory layer and key/value head, the newest entries of what was pushed, each made of `rate` evicted tokens.

    The first `hidden` entries, which are sinks alone, are never seen. The others fill the queue from the front, so that those
    in use are always a slice. Tensors are `{name}_keys` and `{name}_values`.
    """

    def __init__(
        self, name: str, layers: dict[int, int], heads: int, entries: int, *, rate: int = 1, sinks: int = 0
    ) -> None:
        self._keys, self._values = f"{name}_keys", f"{name}_values"
        self._layers, self._heads, self._entries = layers, heads, entries
        self._rate, self._hidden = rate, sinks // rate

    def spec(self, size: int, dtype: torch.dtype) -> Spec:
        """(layers, K, entries, size) of keys, and of values."""
        entries = TensorSpec((len(self._layers), self._heads, self._entries, size), dtype)
        return {self._keys: entries, self._values: entries}

    def filled(self, folded: int) -> int:
        """Entries of a head that are in use when so many tokens were folded."""
        return min(self._entries, max(0, folded // self._rate - self._hidden))

    def read(self, index: int, state: MemoryState, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` entries of a memory layer: keys and values, (B, K, count, size)."""
        used = slice(0, count)
        return state.read(self._keys, index, slice(None), used), state.read(self._values, index, slice(None), used)

    def push(self, index: int, state: MemoryState, starts: Tensor, keys: Tensor, values: Tensor) -> None:
        """Take in what was made of the tokens from the positions `starts` (B,) on: keys and values (B, K, n, size)."""
        # Counted from the first entry that is seen: those before it (-hidden ... -1) land where nobody looks yet.
        number = starts[:, None] // self._rate - self._hidden + torch.arange(keys.shape[2], device=keys.device)
        places = number % self._entries
        state.write_at(self._keys, index, places, keys)
        state.write_at(self._values, index, places, values)

    def report(self, folded: int) -> Report:
        """Entries in use by layer when so many tokens were folded."""
        heads, used = tuple(range(self._heads)), self.filled(folded) * self._heads
        return Report(tuple(LayerReport(layer, heads, self._entries, used) for layer in self._layers))
