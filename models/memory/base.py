"""What a memory mechanism is, and the registry of those there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError
from models.layers import Layer
from models.memory.beginnings import Beginnings
from models.memory.strength import Marked
from models.native import Kept
from models.state import MemoryState, Spec


@dataclass(frozen=True)
class LayeredConfig(MemoryConfig):
    """What mechanisms share that only some layers need to have: `layers` by index, () for all of them.

    Where a model's retrieval heads are known, the layers with the strongest of them are what `layers` is unless it is given.
    """

    layers: tuple[int, ...] = ()

    def memory_layers(self, model: ModelConfig) -> dict[int, int]:
        """The layers that have the memory, in order, each with its index among them. Raises `ConfigError`."""
        layers = sorted(set(self.layers)) or range(model.num_layers)
        if not all(0 <= layer < model.num_layers for layer in layers):
            raise ConfigError(f"layers must lie between 0 and {model.num_layers - 1}, not {list(layers)}")
        return {layer: index for index, layer in enumerate(layers)}

    def depth(self, model: ModelConfig) -> int:
        """Up to the last layer that has the memory."""
        return max(self.memory_layers(model)) + 1


@dataclass(frozen=True)
class Left:
    """Where evicted keys and values are."""

    keys: Tensor
    values: Tensor
    """(sessions, L, K, N, d): the ring of all sessions and layers."""
    rows: Tensor | None
    """(B,): which of the sessions; None: the first B."""
    places: Tensor
    """(B, S + lookahead)"""
    cos: Tensor
    sin: Tensor
    """(B, 1, S + lookahead, d/2): the keys' rotation."""


@dataclass(frozen=True)
class Evicted:
    """The S oldest tokens of the ring, on their way into the memory of one layer, for the B rows that fold now."""

    take: Callable[[], tuple[Tensor, Tensor]]
    """Makes `keys` and `values`, while the ring is as it is."""
    tokens: Tensor
    """(B, S) int32."""
    starts: Tensor
    """(B,) int64: position of the first evicted token."""
    counted: Tensor
    """(B, S) bool: False for the sinks, which stay in sight and must not be counted twice."""
    queries: Tensor | None = None
    """(B, K, G, t, d), without rotation, of the call that completed the segment: for losses while training, else None."""
    said: Tensor | None = None
    """(B, S) int32: what each stands behind in its sentence, for a memory with `beginnings`."""
    left: Left | None = None
    """Where they lie, in a state that is written in place."""

    @property
    def keys(self) -> Tensor:
        """(B, K, S + lookahead, d) wide, rotary embedding taken off; the last `lookahead` stay in the ring."""
        return self._taken[0]

    @property
    def values(self) -> Tensor:
        """(B, K, S, d) in the state's dtype."""
        return self._taken[1]

    @cached_property
    def _taken(self) -> tuple[Tensor, Tensor]:
        return self.take()


@dataclass(frozen=True)
class Finished:
    """A segment of one layer that is complete and still in the ring, for the B rows that have just completed one."""

    keys: Tensor
    """(B, K, S, d) in the state's dtype, each turned by its own position."""
    values: Tensor
    """(B, K, S, d) in the state's dtype."""
    cos: Tensor
    sin: Tensor
    """(B, 1, S, d/2): the rotation of the segment's positions."""
    starts: Tensor
    """(B,) int64: position of the segment's first token."""
    first: list[int]
    """The rows whose very first segment this is."""


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


class Memory(nn.Module, ABC):
    """A mechanism: what it keeps, how it folds evicted tokens into it, and what a query reads of it.

    It sees one layer at a time and holds no tensors of its own that depend on a session. Its parameters, if it has any, are
    what can be learned; they start such that an untrained memory does the model no harm, and the same at every start.
    """

    lookahead = 0
    """How many tokens behind the evicted ones `fold` wants to see."""
    looks_back = 0
    """How many tokens before a query its layer's keys are wanted of."""
    follows = False
    """Whether `finish` is to be called."""
    beginnings: Beginnings | None = None
    """How sentences that begin alike are known, if that is wanted."""
    still = False
    """Whether `read` does the same whatever a session holds, so that a step can be recorded and played again (`Decoder.step`)."""
    listens: int | None = None
    """The layer whose output `hear` is to be given; the decoder then reads no more than W tokens at once."""

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.losses: list[Tensor] | None = None
        """While training: a list to which the mechanism adds the losses of its own, scalars. None otherwise."""
        self.marked: Marked | None = None
        """While training, where that is known: what should be written, for a mechanism that decides about it."""

    @abstractmethod
    def spec(self) -> Spec:
        """The tensors it keeps for a session, beside the ring."""

    def reads(self, layer: int) -> bool:
        """Whether the layer's queries may ever see anything beyond the ring; if not, nothing that leaves it is folded there."""
        return True

    def mixes(self, layer: int) -> bool:
        """Whether `finish` wants the layer's output projection without the network behind it."""
        return False

    @abstractmethod
    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """What the layer's queries see beyond the ring; None where there is nothing yet."""

    def keeps(self) -> Kept | None:
        """The same for all layers, where it lies in the state and only has to be looked at; None: only `read` can say it."""
        return None

    def kept(self, folded: Sequence[int]) -> list[int]:
        """How much each head has kept of so many evicted tokens, by row. Only of one that says what it `keeps`."""
        return [0 for _ in folded]

    def worth(self, state: MemoryState, starts: Tensor, counted: Tensor) -> Tensor | None:
        """What the tokens that are about to leave the ring are worth to each of the heads that it `keeps` something for: (B, R, S),
        -inf for what is not to be kept; None: only `fold` can say it. `starts` and `counted` as in `Evicted`."""
        return None

    @abstractmethod
    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Take evicted tokens in. Every row of `state` folds."""

    def finish(self, layer: int, weights: Layer, state: MemoryState, finished: Finished) -> None:
        """A segment is complete. Every row of `state` has completed one; called before `fold` when both are due.

        Only of a mechanism that `follows`, which says here what it does; the others live on what is evicted alone.
        """

    def hear(self, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
        """The output (B, T, D), wide, of the layer it `listens` to, for the tokens at positions (B, T). Before later layers."""

    def begin_with(self, embeddings: Tensor) -> None:
        """Let what is learned begin with what a text means: its tokens' embeddings (n, D).

        Raises `ConfigError` for a memory that has nothing to begin with.
        """
        raise ConfigError(f"{type(self).__name__.lower()} has no tokens of its own that could begin with a text")

    def report(self, state: MemoryState) -> Report:
        """What it holds of the one session in `state`; nothing that could be named, unless a mechanism says more."""
        return Report()


@dataclass(frozen=True)
class Mechanism:
    """A registered mechanism: its name, its configuration class and how to build it for a model."""

    name: str
    config: type[MemoryConfig]
    build: Callable[[ModelConfig, Any, torch.dtype], Memory]
    """From the model's configuration, the mechanism's, and the compute dtype."""


def find_mechanism(name: str, known: Mapping[str, Mechanism]) -> Mechanism:
    """The mechanism of that name. Raises `ConfigError` that lists the known ones."""
    if name not in known:
        raise ConfigError(f"no memory is called {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]
