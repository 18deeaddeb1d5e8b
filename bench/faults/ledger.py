"""The client's own account of what was acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

How = Literal["memory", "journal", "body"]
"""How a text is sent, and which answer is waited for; `body` sends it as it is, in no JSON."""


@dataclass(frozen=True)
class Appended:
    """An append that was acknowledged: `tokens` taken in, the session at `position` behind them."""

    op_id: str
    text: str
    how: How
    tokens: int
    position: int
    etag: str | None = None


@dataclass(frozen=True)
class Said:
    """A remembered greedy generation that was told to its end: `sampled` tokens, which read as `answer`."""

    op_id: str
    prompt: str | None
    max_tokens: int
    answer: str
    reason: str
    sampled: int
    position: int
    etag: str | None = None


Entry = Appended | Said


@dataclass
class Ledger:
    """What one session has acknowledged to all of its authors."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """An operation was acknowledged for the first time."""
        self.entries.append(entry)

    @property
    def in_order(self) -> list[Entry]:
        """In the order in which the session took them in, whoever sent them."""
        return sorted(self.entries, key=lambda entry: entry.position)

    @property
    def position(self) -> int:
        """Where the session must stand."""
        return max((entry.position for entry in self.entries), default=0)

    def rewind(self, position: int) -> list[Entry]:
        """The session came back at `position`, which may have happened: take out what lies behind it, and return that."""
        lost = [entry for entry in self.in_order if entry.position > position]
        self.entries = [entry for entry in self.entries if entry.position <= position]
        return lost
