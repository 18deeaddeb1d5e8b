"""How many may ask one Redis at once, and whether that is worth it: while it is silent, all but one in a while are refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.exceptions as redis
import structlog

from server.errors import StoreUnavailable
from server.store.redis_failures import FAILURES, is_silence

_PAUSE_SECONDS = 0.2
_SILENCES = 2
"""One lost connection may be that connection's own fault."""


class Gate:
    """Open while Redis answers. Use from one event loop."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._silences = 0
        self._ask_again = 0.0
        self._trying = False
        self._refusal = ""
        """The last that was logged: a full Redis says the same to every call."""

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Around one exchange with Redis. Raises `StoreUnavailable` instead while Redis is silent."""
        trial = self._silences >= _SILENCES
        if trial:
            self._admit()
        try:
            async with self._places:
                yield
        except FAILURES as error:
            self.note(error)
            raise
        except RuntimeError as error:
            # So says uvloop when it is to write to a connection that was reset a moment ago.
            if "handler is closed" not in str(error):
                raise
            lost = redis.ConnectionError("the connection was closed")
            self.note(lost)
            raise lost from error
        except asyncio.CancelledError:
            # Callers cannot cancel what talks to Redis: its time has run out.
            self._silent(1)
            raise
        else:
            self._answered()
        finally:
            if trial:
                self._trying = False

    def note(self, error: Exception) -> None:
        """One of `FAILURES` has happened, in an exchange that goes on."""
        if is_silence(error):
            # Time that ran out has already cost somebody all their patience.
            self._silent(_SILENCES if isinstance(error, (TimeoutError, redis.TimeoutError)) else 1)
            return
        self._silences = 0
        if not isinstance(error, redis.NoScriptError) and (said := str(error)) != self._refusal:
            structlog.get_logger("server.store").error("redis refuses", answer=said)
            self._refusal = said

    def _answered(self) -> None:
        self._silences = 0
        self._refusal = ""

    def _silent(self, weight: int) -> None:
        self._silences += weight
        self._ask_again = time.monotonic() + _PAUSE_SECONDS

    def _admit(self) -> None:
        if self._trying or time.monotonic() < self._ask_again:
            raise StoreUnavailable("Redis does not answer at the moment. Try again.")
        self._trying = True
