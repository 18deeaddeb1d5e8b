"""Who lies in which row of the slab. Every session costs the same, so admission is a count: no paging, no fragments."""

from __future__ import annotations

from collections import OrderedDict


class Residency:
    """Rows 0 … R-1 and the keys that hold them, least recently used first."""

    def __init__(self, rows: int) -> None:
        self._free = list(range(rows - 1, -1, -1))
        self._held: OrderedDict[str, int] = OrderedDict()

    def take(self, key: str) -> int | None:
        """A free row for `key`, or None when all are held."""
        assert key not in self._held
        if not self._free:
            return None
        row = self._free.pop()
        self._held[key] = row
        return row

    def holds(self, key: str) -> bool:
        """Whether `key` has a row."""
        return key in self._held

    def touch(self, key: str) -> None:
        """`key` was used just now."""
        self._held.move_to_end(key)

    def give_back(self, key: str) -> None:
        """The row of `key` is free again."""
        self._free.append(self._held.pop(key))

    @property
    def by_age(self) -> list[str]:
        """Holders, least recently used first."""
        return list(self._held)

    @property
    def free(self) -> int:
        """Rows nobody holds."""
        return len(self._free)
