"""Named places where a test makes this process fail. Without `PALIMPSEST_FAILPOINTS` in the environment they do nothing.

`PALIMPSEST_FAILPOINTS` lists `name=action` or `name=action@n`, separated by commas; the action happens the n-th time (the first,
if not given) that a process passes the place. `PALIMPSEST_FAILPOINTS_DIR` is a folder in which each action leaves a file, so that
a process started anew does not fail there again. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `error` (raises `StoreUnavailable`),
`sleep:<seconds>` (the whole process stands still).
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import StoreUnavailable

NAMES = frozenset(
    {
        "journal.before",
        "journal.after",
        "snapshot.before",
        "snapshot.written",
        "snapshot.pointed",
        "acquire.before",
        "acquire.after",
        "renew.before",
        "release.before",
        "handover.before",
        "fork.before",
        "fork.pinned",
        "load.before",
    }
)
"""`snapshot.written`: the bytes are stored and nothing points to them. `snapshot.pointed`: the pointer is set, what it replaced is
still there. `fork.pinned`: the parent knows of the child, which is not there yet. The others stand before or after one call."""


@dataclass
class FailPoints:
    """What was asked for, and how often each place has been passed."""

    actions: Mapping[str, tuple[str, int]]
    folder: Path
    passed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> FailPoints | None:
        """None when nothing is asked for. Raises `ValueError` for a name that is none."""
        text = environment.get("PALIMPSEST_FAILPOINTS", "")
        if not text:
            return None
        actions: dict[str, tuple[str, int]] = {}
        for part in text.split(","):
            name, _, rest = part.partition("=")
            action, _, count = rest.partition("@")
            if name not in NAMES or action.partition(":")[0] not in _ACTIONS:
                raise ValueError(f"PALIMPSEST_FAILPOINTS: {part!r} names no place or no action")
            actions[name] = (action, int(count or 1))
        return cls(actions, Path(environment["PALIMPSEST_FAILPOINTS_DIR"]))

    def reach(self, name: str) -> None:
        """Fail here, if this is the time."""
        wanted = self.actions.get(name)
        if wanted is None:
            return
        action, count = wanted
        self.passed[name] += 1
        done = self.folder / name
        if self.passed[name] != count or done.exists():
            return
        done.touch()
        verb, _, argument = action.partition(":")
        _ACTIONS[verb](argument)


def _error(_argument: str) -> None:
    raise StoreUnavailable("a fail point was reached")


_ACTIONS: Mapping[str, Callable[[str], None]] = {
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "error": _error,
}

_ASKED_FOR = FailPoints.from_environment(os.environ)


def failpoint(name: str) -> None:
    """Pass a named place."""
    if _ASKED_FOR is not None:
        _ASKED_FOR.reach(name)
