"""One session, parked in a store and taken up again, step by step with a clock beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from server.ids import new_id
from server.messages import SamplingParams
from server.store.base import JournalEntry, Lease, SessionRecord, Store
from server.store.sealing import Sealer
from server.worker.runner import Feed, Runner

TENANT = "bench"
_OWNER = "bench/0/1"
_LEASE_SECONDS = 3600.0
_PARKED, _RESUMED = 0, 1
"""Rows of the runner: the session before it was parked, and behind its resumption."""

T = TypeVar("T")


class ResumedOtherwiseError(RuntimeError):
    """A resumed session did not go on as the parked one does."""


@dataclass(frozen=True)
class Cycle:
    """Milliseconds of each step. `save` includes sealing and Redis's fsync, `load` includes opening the seal. `fork` copies no
    state, so it is the same at any length."""

    encode: float
    seal: float
    journal: float
    save: float
    load: float
    restore: float
    first_token: float
    fork: float

    @property
    def resume(self) -> float:
        """From nothing in memory to the first token."""
        return self.load + self.restore + self.first_token


@dataclass(frozen=True)
class Parked:
    """What parking one session cost, over several cycles."""

    state_bytes: int
    sealed_bytes: int
    cycles: Sequence[Cycle]

    def median(self, step: str) -> float:
        """Median milliseconds of a step, by its name in `Cycle`."""
        return round(statistics.median(float(getattr(cycle, step)) for cycle in self.cycles), 2)


class Parking:
    """Runs the cycles. Every one takes in a token more, since a state that did not change is not saved again."""

    def __init__(self, runner: Runner, store: Store, sealer: Sealer, question: Sequence[int]) -> None:
        self._runner, self._store, self._sealer, self._question = runner, store, sealer, question

    async def measure(self, state: bytes, following: Sequence[int]) -> tuple[str, Parked]:
        """Park and resume a session once for every token that follows. Returns its id; it stays in the store."""
        position = self._runner.restore(_PARKED, state)
        lease = await self._settle_in(state, position)
        cycles = []
        for token in following:
            cycles.append(await self._cycle(lease, position, token))
            position += 1
        sealed = self._sealer.seal(state, (TENANT, lease.session_id, "snapshot", 0))
        return lease.session_id, Parked(len(state), len(sealed), cycles)

    async def _settle_in(self, state: bytes, position: int) -> Lease:
        session_id, now = new_id("sess"), time.time()
        record = SessionRecord(session_id, TENANT, "bench", "slots", now, now, journaled=position)
        await self._store.adopt(record, state, ())
        return await self._store.acquire(session_id, _OWNER, _LEASE_SECONDS)

    async def _cycle(self, lease: Lease, position: int, token: int) -> Cycle:
        self._runner.run([Feed("parked", _PARKED, [token], None)])
        began = time.perf_counter()
        (outcome,) = await self._store.journal([JournalEntry(lease, position, [token], "", 0, "none")])
        journal = _since(began)
        if isinstance(outcome, Exception):
            raise outcome
        encode, (covered, data) = _timed(lambda: self._runner.save(_PARKED))
        seal, _ = _timed(lambda: self._sealer.seal(data, (TENANT, lease.session_id, "snapshot", covered)))
        began = time.perf_counter()
        await self._store.save_snapshot(lease, covered, data)
        save = _since(began)
        began = time.perf_counter()
        stored = await self._store.load(lease.session_id)
        load = _since(began)
        assert stored.snapshot_position == covered, "the snapshot just saved is the one loaded"
        restore, _ = _timed(lambda: self._runner.restore(_RESUMED, stored.snapshot))
        first_token, answer = _timed(self._ask)
        self._compare(answer)
        fork = await self._fork(lease.session_id)
        return Cycle(encode, seal, journal, save, load, restore, first_token, fork)

    async def _fork(self, session_id: str) -> float:
        now = time.time()
        child = SessionRecord(new_id("sess"), TENANT, "bench", "slots", now, now)
        began = time.perf_counter()
        forked = await self._store.fork(TENANT, session_id, child)
        took = _since(began)
        await self._store.delete(TENANT, forked.id)
        return took

    def _ask(self) -> int:
        voice = self._runner.voice(SamplingParams(temperature=0, max_tokens=1))
        return self._runner.run([Feed("resumed", _RESUMED, self._question, voice)])["resumed"].token

    def _compare(self, answer: int) -> None:
        self._runner.copy(_PARKED, _RESUMED)
        if (expected := self._ask()) != answer:
            raise ResumedOtherwiseError(
                f"the session goes on with token {expected}, resumed from the store with {answer}"
            )


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds that `work` took, and what it returned."""
    began = time.perf_counter()
    result = work()
    return _since(began), result
