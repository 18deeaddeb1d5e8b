"""When a request may be sent again, and after how long. No I/O here: callers sleep."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from palimpsest.errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    NotResumable,
    PalimpsestError,
    SocketClosed,
    StreamBroken,
    Unavailable,
)

_NOT_STARTED = frozenset({"unavailable", "draining", "overloaded"})
"""Codes of a 503 that say the work was never begun; a lost worker may have stored the prompt already."""


class Repeat(enum.Enum):
    """How safe it is to send a request twice."""

    ALWAYS = enum.auto()
    """Reading, or carries an operation id: the server applies it once."""
    UNSTARTED = enum.auto()
    """Only when the answer shows that nothing was begun."""
    REFUSED = enum.auto()
    """Only when no connection was made: the body can be read but once."""


@dataclass(frozen=True)
class RetryPolicy:
    """Up to `retries` more attempts, `first_delay` seconds doubling to `longest_delay`, with jitter.

    A `Retry-After` is waited for in full; one beyond `patience` seconds is raised instead.
    """

    retries: int = 2
    first_delay: float = 0.25
    longest_delay: float = 8.0
    patience: float = 60.0

    def delay(self, failures: int, asked: float | None = None) -> float:
        """Seconds before the next attempt, after `failures` (≥ 1) in a row."""
        # Capped exponent: 2.0**1100 would overflow in a loop that waits for hours.
        grown = min(self.longest_delay, self.first_delay * 2.0 ** min(failures - 1, 30))
        return max(grown * random.uniform(0.5, 1.0), asked or 0.0)

    def attempts(self, repeat: Repeat) -> Attempts:
        """Begin to count the attempts of one call."""
        return Attempts(self, repeat)


class Attempts:
    """The attempts of one call."""

    def __init__(self, policy: RetryPolicy, repeat: Repeat) -> None:
        self._policy = policy
        self._repeat = repeat
        self._failures = 0

    def after(self, error: PalimpsestError) -> float:
        """Seconds to wait before trying again; raises `error` when that is not allowed or pointless."""
        self._failures += 1
        asked = error.retry_after if isinstance(error, ApiError) else None
        if self._failures > self._policy.retries or not may_repeat(error, self._repeat):
            raise error
        if asked is not None and asked > self._policy.patience:
            raise error
        return self._policy.delay(self._failures, asked)


def may_repeat(error: PalimpsestError, repeat: Repeat) -> bool:
    """Whether the request that failed with `error` may be sent once more."""
    if isinstance(error, ConnectionFailed):
        return error.refused or repeat is Repeat.ALWAYS
    if isinstance(error, StreamBroken):
        lasting = isinstance(error, NotResumable) or (isinstance(error, SocketClosed) and not error.reconnect)
        return repeat is Repeat.ALWAYS and not lasting
    if not isinstance(error, ApiError):
        return False
    busy = isinstance(error, Conflict) and error.code == "session_busy"
    match repeat:
        case Repeat.ALWAYS:
            return busy or isinstance(error, Unavailable) or _passing(error.status)
        case Repeat.UNSTARTED:
            return busy or error.status == 429 or (error.status == 503 and error.code in _NOT_STARTED)
        case Repeat.REFUSED:
            return False


def _passing(status: int | None) -> bool:
    """Whether an HTTP status speaks of something that may be over soon; None is that of errors inside a stream."""
    return status is not None and (status in (408, 429) or status >= 500)
