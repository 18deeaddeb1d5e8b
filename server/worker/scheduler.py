"""Which sessions run in the next step, and how many tokens of each. Pure: no I/O, no torch, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from server.worker.shares import cost


@dataclass(frozen=True)
class Candidate:
    """A resident session that has something to do.

    `pending` counts journaled tokens that are not folded yet; `served` is the step in which it ran last.
    """

    key: str
    tenant: str
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


def plan(candidates: Iterable[Candidate], limits: Limits, had: Callable[[str], float]) -> Batch | None:
    """The next step, or None when nobody has anything to do. `had` tells what was done for a tenant so far.

    Everyone with at most one token to feed decodes together. What the budget leaves goes to those who read: to the tenant who had
    least, and of its sessions to the one served longest ago, so that no long append starves another and no number of sessions
    another tenant's.
    """
    by_age = sorted(candidates, key=lambda candidate: (candidate.served, candidate.key))
    account = {candidate.tenant: had(candidate.tenant) for candidate in by_age}
    ready = [c for c in by_age if c.pending == 1 or (c.generating and c.pending == 0)]
    decode: list[Candidate] = []
    for candidate in _turns(ready, account):
        if len(decode) == limits.max_batch:
            break
        decode.append(candidate)
        account[candidate.tenant] += cost(1, candidate.generating)
    streaming = any(candidate.generating for candidate in decode)
    budget = limits.prefill_tokens_beside(len(decode)) if streaming else limits.prefill_tokens
    prefill = []
    for candidate in _turns([c for c in by_age if c.pending > 1], account):
        if budget <= 0:
            break
        count = min(candidate.pending, budget)
        prefill.append((candidate.key, count))
        account[candidate.tenant] += cost(count, candidate.generating)
        budget -= count
    if not decode and not prefill:
        return None
    return Batch(tuple(c.key for c in decode), tuple(prefill))


def _turns(by_age: Sequence[Candidate], account: dict[str, float]) -> Generator[Candidate, None, None]:
    """All of them: always the oldest of the tenant that stands lowest in `account`, to which the caller adds between two."""
    of_tenant: dict[str, deque[Candidate]] = {}
    for candidate in by_age:
        of_tenant.setdefault(candidate.tenant, deque()).append(candidate)
    while of_tenant:
        tenant = min(of_tenant, key=lambda name: (account[name], of_tenant[name][0].served, name))
        yield of_tenant[tenant].popleft()
        if not of_tenant[tenant]:
            del of_tenant[tenant]
