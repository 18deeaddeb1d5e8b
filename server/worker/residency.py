"""Who lies in which row of which slab. Sessions of a pair all cost the same, so admission is a count: no paging, no fragments."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from server.pairs import Pair


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
