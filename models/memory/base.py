"""What a memory mechanism is, and the registry of those there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import Far
from models.state import MemoryState, Spec


@dataclass(frozen=True)
class Evicted:
    """The S oldest tokens of the ring, on their way into the memory of one layer, for the B rows that fold now."""

    keys: Tensor
    """(B, K, S + lookahead, d) float32, rotary embedding taken off; the last `lookahead` stay in the ring."""
    values: Tensor
    """(B, K, S, d) in the state's dtype."""
    tokens: Tensor
    """(B, S) int32."""
    starts: Tensor
    """(B,) int64: position of the first evicted token."""


@dataclass(frozen=True)
class LayerReport:
    """One layer's memory: its key/value heads, entries a head can hold, and entries in use over all of them."""

    layer: int
    heads: tuple[int, ...]
    slots: int
    used: int


@dataclass(frozen=True)
class Report:
    """What a memory holds of one session: by layer, and the runs of tokens it could name, in order of position."""

    layers: tuple[LayerReport, ...] = ()
    runs: tuple[tuple[int, tuple[int, ...]], ...] = ()


class Memory(Protocol):
    """A mechanism: what it keeps, how it folds evicted tokens into it, and what a query reads of it.

    It sees one layer at a time and holds no tensors of its own that depend on a session.
    """

    @property
    def config(self) -> MemoryConfig:
        """Its settings."""

    @property
    def lookahead(self) -> int:
        """How many tokens behind the evicted ones `fold` wants to see."""

    def spec(self) -> Spec:
        """The tensors it keeps for a session, beside the ring."""

    def read(self, layer: int, state: MemoryState, folded: Sequence[int]) -> Far | None:
        """What the layer's queries see beyond the ring; `folded` is how many tokens each row has evicted so far."""

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Take evicted tokens in. Every row of `state` folds."""

    def report(self, state: MemoryState) -> Report:
        """What it holds of the one session in `state`."""


@dataclass(frozen=True)
class Mechanism:
    """A registered mechanism: its name, its configuration class and how to build it for a model."""

    name: str
    config: type[MemoryConfig]
    build: Callable[[ModelConfig, Any, torch.dtype], Memory]


def find_mechanism(name: str, known: Mapping[str, Mechanism]) -> Mechanism:
    """The mechanism of that name. Raises `ConfigError` that lists the known ones."""
    if name not in known:
        raise ConfigError(f"no memory is called {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]
