"""Which sessions run in the next step, and how many tokens of each. Pure: no I/O, no torch, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A resident session that has something to do.

    `pending` counts journaled tokens that are not folded yet; `served` is the step in which it ran last.
    """

    key: str
    pending: int
    generating: bool
    served: int


@dataclass(frozen=True)
class Limits:
    """Sessions a step, and prefill tokens a step: fewer beside running generations, so that their streams keep pace.

    `prefill_tokens_beside` says how many, given the number of sessions that decode.
    """

    max_batch: int
    prefill_tokens: int
    prefill_tokens_beside: Callable[[int], int]


@dataclass(frozen=True)
class Batch:
    """One step: `decode` takes at most one token each, all together; then come the chunks that `prefill` reads."""

    decode: tuple[str, ...]
    prefill: tuple[tuple[str, int], ...]


def plan(candidates: Iterable[Candidate], limits: Limits) -> Batch | None:
    """The next step, or None when nobody has anything to do.

    Everyone with at most one token to feed decodes together. What the budget leaves goes to those who read, the one served
    longest ago first, so that no long append starves another.
    """
    by_age = sorted(candidates, key=lambda candidate: (candidate.served, candidate.key))
    decode = [c for c in by_age if c.pending == 1 or (c.generating and c.pending == 0)][: limits.max_batch]
    streaming = any(candidate.generating for candidate in decode)
    budget = limits.prefill_tokens_beside(len(decode)) if streaming else limits.prefill_tokens
    prefill = []
    for candidate in by_age:
        if candidate.pending > 1 and budget > 0:
            count = min(candidate.pending, budget)
            prefill.append((candidate.key, count))
            budget -= count
    if not decode and not prefill:
        return None
    return Batch(tuple(c.key for c in decode), tuple(prefill))
