"""What a layer asks its memory, and the two ways in which a memory answers: keys and values, or an answer of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.layers import rotate


def of_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Some heads of x (B, heads, …): a view where they are neighbours. No index goes to the device."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x.narrow(1, first, count)
    return torch.stack([x[:, head] for head in heads], dim=1)


@dataclass(frozen=True)
class Before:
    """For each of n tokens, the keys of those before it, oldest first and without rotation: (B, r, n, d, count) wide.

    `known` (B, 1 or r, n, 1, count) says which of them there are.
    """

    keys: Tensor
    known: Tensor


@dataclass(frozen=True)
class Recent:
    """Keys of neighbouring tokens, without rotation: (B, K, n, d) wide, and which of them there are, (B, n) bool."""

    keys: Tensor
    known: Tensor

    def of(self, heads: list[int]) -> Recent:
        """Those of some key/value heads."""
        return Recent(of_heads(self.keys, heads), self.known)

    def before(self, count: int) -> Before:
        """What so many tokens before each say, of all but the first `count`."""
        known = self.known.unfold(1, count, 1)[:, :-1]
        return Before(self.keys.unfold(2, count, 1)[:, :, :-1], known[:, None, :, None])


@dataclass(frozen=True)
class Around:
    """Where the queries' own keys are in a ring, and those of the n − t tokens before them."""

    keys: Tensor
    """(sessions, L, K, N, d): the ring of all sessions and layers."""
    rows: Tensor | None
    """(B,): which of the sessions; None: the first B."""
    layer: int
    places: Tensor
    """(B, n)"""
    cos: Tensor
    sin: Tensor
    """(B, 1, n, d/2): the keys' rotation."""
    known: Tensor
    """(B, n) bool"""


@dataclass(frozen=True)
class Asked:
    """The queries of one piece of a chunk, and how far each of the B sessions has come before it."""

    plain: Tensor
    """(B, K, G, t, d): as projected, without rotation."""
    near: Tensor
    """The same, each turned by its own position."""
    cos: Tensor
    sin: Tensor
    """(1, 1, 1, d/2): the rotation of distance W."""
    folded: Sequence[int] | Tensor
    """Tokens that each row has evicted: its memory holds what became of them. A tensor (B,) where nobody may wait for the device:
    then only memories that are `still` are asked."""
    finished: Sequence[int] | Tensor
    """Tokens that each row has in complete segments, evicted or still in the ring."""
    recent: Callable[[], Recent] | None = None
    """The layer's keys of as many tokens before the queries as its memory `looks_back` at, and of the queries' own tokens."""

    around: Around | None = None
    """The same where it lies, for a state that is written in place."""
    positions: Sequence[int] = ()
    """Of each row's first query, where somebody may ask."""

    @cached_property
    def far(self) -> Tensor:
        """The queries turned by W: a key without rotation is then seen at distance W."""
        return rotate(self.plain.flatten(1, 2), self.cos, self.sin).view_as(self.plain)


@dataclass(frozen=True)
class Grid:
    """What rounded vectors of dimension d are: `codes * scale * spread + centre`.

    `centre` and `spread`, (B, r, d) wide, are a head's own: keys lie around a point far from zero, and four bits are better
    spent on what tells one key from another.
    """

    centre: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Far:
    """Keys and values that a memory adds to the softmax of some heads.

    `heads` lists the key/value heads (r of them). `keys` and `values` are (B, r, C, d), in the compute dtype or as
    integers (int8, or uint8 with two of `pack_codes` a byte) with `key_scale` and `value_scale` (B, r, C), and a grid for either if
    need be. `visible` (B, r, C) is False where
    nothing is stored; None means that all is visible. Keys carry no rotation: they lie at one fixed distance W. `query`
    (B, r, G, t, d) is what they are asked for, None: what queries at that distance are. `offset` (B, r, G, t), wide, is added to a
    query's scaled far scores; `slope` (B, r, G, t), wide, times a key's `age` (B, C), wide, is taken from them.
    """

    heads: list[int]
    keys: Tensor
    values: Tensor
    visible: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    key_grid: Grid | None = None
    value_grid: Grid | None = None
    query: Tensor | None = None
    offset: Tensor | None = None
    slope: Tensor | None = None
    age: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.slope is None) == (self.age is None), "a slope needs an order"

    @property
    def plain(self) -> bool:
        """Whether these are keys and values as they are, all of them visible and none preferred for its age."""
        others = (
            self.visible,
            self.key_scale,
            self.value_scale,
            self.key_grid,
            self.value_grid,
            self.slope,
        )
        return all(other is None for other in others)


@dataclass(frozen=True)
class Beside:
    """What a memory answers apart from the softmax of the ring: `out` (B, r, G, t, d), finite everywhere, wide.

    Either `mass` (B, r, G, t) is the log-sum-exp of the memory's own scores (scaled by 1/√d), and the two are joined as if
    they were one softmax; or `gate`, which broadcasts to (B, r, G, t, 1), weighs the answer, and what the ring gives weighs
    1 - gate, or 1 where the answer is `added`. With both, the gate is what the answer keeps of its share of the softmax.
    Rows that are not `filled` (B,) keep to the ring; None: all are.
    """

    heads: list[int]
    out: Tensor
    mass: Tensor | None = None
    gate: Tensor | None = None
    added: bool = False
    filled: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.mass is not None or self.gate is not None, "a memory is joined by its mass or by a gate"
