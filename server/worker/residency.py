"""Who lies in which row of which slab. Sessions of a pair all cost the same, so admission is a count: no paging, no fragments."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.pairs import Pair

TURN_SECONDS = 5.0
"""How long one that reads keeps its row before it makes room for another: writing it out and taking it in again costs some
hundredths of a second."""


class Residency:
    """For each pair rows 0 … R-1, and the keys that hold them, least recently used first."""

    def __init__(self, rows: int) -> None:
        self._free: defaultdict[Pair, list[int]] = defaultdict(lambda: list(range(rows - 1, -1, -1)))
        self._held: OrderedDict[str, tuple[Pair, int]] = OrderedDict()

    def take(self, key: str, pair: Pair) -> int | None:
        """A free row of the pair's slab for `key`, or None when all are held."""
        assert key not in self._held
        if not self._free[pair]:
            return None
        row = self._free[pair].pop()
        self._held[key] = (pair, row)
        return row

    def holds(self, key: str) -> bool:
        """Whether `key` has a row."""
        return key in self._held

    def touch(self, key: str) -> None:
        """`key` was used just now."""
        self._held.move_to_end(key)

    def give_back(self, key: str) -> None:
        """The row of `key` is free again."""
        pair, row = self._held.pop(key)
        self._free[pair].append(row)

    @property
    def by_age(self) -> list[str]:
        """Holders of all pairs, least recently used first."""
        return list(self._held)

    def free(self, pair: Pair) -> int:
        """Rows of the pair's slab that nobody holds."""
        return len(self._free[pair])


@dataclass(frozen=True)
class Queued:
    """A session that waits for a row, since when, and what was done for its tenant so far."""

    key: str
    tenant: str
    since: float
    had: float


def in_turn(queue: Sequence[Queued], rows: Mapping[str, int]) -> list[str]:
    """Who gets the next rows, in this order, if tenants hold so many: turn by turn the tenants with the fewest, those for whom less
    was done first; of one tenant who has waited longest."""
    held, order = Counter(rows), list[tuple[int, float, float, str]]()
    for one in sorted(queue, key=lambda one: one.since):
        order.append((held[one.tenant], one.had, one.since, one.key))
        held[one.tenant] += 1
    return [key for *_, key in sorted(order)]


@dataclass(frozen=True)
class Holder:
    """A resident session that could leave.

    `clean`: nothing of it has to be written. `reads_since`: when it got its row, where it reads; None where it has nothing to do.
    """

    key: str
    tenant: str
    pair: Pair
    clean: bool
    reads_since: float | None


def leavers(short: Mapping[Pair, int], holders: Sequence[Holder], now: float) -> list[str]:
    """Who leaves, so that so many rows of each pair become free. `holders` are given least recently used first.

    First go those that have nothing to do, clean ones before others; then those that have read for a turn, of the tenant with the
    most rows, the longest first: a question need not wait until all that fills the rows is read.
    """
    wanted, found = Counter(short), list[str]()
    rows = Counter(holder.tenant for holder in holders)

    def leave(holder: Holder) -> None:
        wanted[holder.pair] -= 1
        rows[holder.tenant] -= 1
        found.append(holder.key)

    for holder in sorted(holders, key=lambda holder: not holder.clean):
        if holder.reads_since is None and wanted[holder.pair] > 0:
            leave(holder)
    reading = [
        (since, holder)
        for holder in holders
        if (since := holder.reads_since) is not None and now - since >= TURN_SECONDS
    ]
    while longest := [(rows[holder.tenant], -since, holder) for since, holder in reading if wanted[holder.pair] > 0]:
        _, since, holder = max(longest, key=lambda one: one[:2])
        reading.remove((-since, holder))
        leave(holder)
    return found
