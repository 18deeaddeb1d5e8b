"""What a session in a store should be, and a sealer that tears its snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.errors import StateRefused
from server.store.base import OperationRecord
from server.store.sealing import PlainSealer


class Torn:
    """Seals plainly; snapshots of the set `torn` do not open."""

    def __init__(self) -> None:
        self.torn: set[bytes] = set()
        self.plain = PlainSealer()

    def seal(self, content: bytes, about: tuple[str | int, ...]) -> bytes:
        return self.plain.seal(content, about)

    def open(self, sealed: bytes, about: tuple[str | int, ...]) -> bytes:
        content = self.plain.open(sealed, about)
        if content in self.torn:
            raise StateRefused("torn")
        return content


@dataclass
class Expected:
    """What a session should be."""

    tokens: list[int] = field(default_factory=list)
    open_text: str = ""
    fence: int = -1
    version: int = 1
    holder: str | None = None
    snapshots: list[tuple[int, bytes]] = field(default_factory=list)
    """Those that are kept, the newest last."""
    whole: bool = True
    """Whether the journal goes back to the beginning."""
    operations: dict[str, OperationRecord] = field(default_factory=dict)

    def way(self, torn: set[bytes]) -> tuple[int, bytes | None, int] | None:
        """Position, snapshot and how many were skipped; None when the session cannot be had any more."""
        for skipped, (position, content) in enumerate(reversed(self.snapshots)):
            if content not in torn:
                return position, content, skipped
        return (0, None, len(self.snapshots)) if self.whole else None
