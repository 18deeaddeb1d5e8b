"""A clock that nobody puts forward or back."""

from __future__ import annotations

import time
from pathlib import Path

from server.store.embedded_database import Database

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class SteadyClock:
    """Seconds since the epoch that go on evenly from one start of the machine to the next, for all processes on one database alike.

    The machine's own clock is read once, by whoever opens the database first after the machine's start. Where the system does
    not tell one start from another, each process reads it for itself.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def __call__(self) -> float:
        """Now; by the machine's own clock until `agree` was called."""
        return time.time() if self._offset is None else self._offset + _running()

    def agree(self, database: Database) -> None:
        """Go by what the others on this database go by."""
        boot, offset = _boot(), time.time() - _running()
        with database.writing():
            row = database.row("SELECT ahead FROM clock WHERE boot = :boot", {"boot": boot})
            if row is not None:
                (offset,) = row
            elif boot:
                database.run("INSERT OR REPLACE INTO clock VALUES (1, :boot, :ahead)", {"boot": boot, "ahead": offset})
        self._offset = offset


def _boot() -> str:
    """What this start of the machine is called; empty where it has no name."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _running() -> float:
    """Seconds since some moment of the machine's start, those it slept included where the system counts them."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)
