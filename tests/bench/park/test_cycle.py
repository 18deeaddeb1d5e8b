"""A session is parked and resumed in a store, and one that comes back as another is found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from bench.park.cycle import Parking, ResumedOtherwiseError
from bench.park.histories import read_on, repeated
from bench.park.report import row, table
from bench.park.reread import Reread
from server.store.base import JournalEntry, Lease, SessionRecord, StoredSession
from server.store.sealing import PlainSealer
from server.worker.runner import Feed, Runner

TEXT = "ba ke lo mi nu ra se ti vo zu. "


@dataclass
class OneSession:
    """As much of a store as one session needs. `swapped` is what comes back instead of the snapshot, if anything."""

    swapped: bytes | None = None
    record: SessionRecord | None = None
    journaled: list[int] = field(default_factory=list)
    snapshots: list[tuple[int, bytes]] = field(default_factory=list)
    forks: set[str] = field(default_factory=set)

    async def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        assert not tail
        assert snapshot is not None
        self.record = record
        self.snapshots.append((record.journaled, snapshot))
        return record

    async def acquire(self, session_id: str, owner: str, seconds: float) -> Lease:
        return Lease(session_id, 1)

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        (entry,) = entries
        assert self.record is not None
        assert entry.start == self.record.journaled + len(self.journaled)
        self.journaled += entry.tokens
        return ["1-00000000"]

    async def save_snapshot(self, lease: Lease, position: int, snapshot: bytes) -> None:
        self.snapshots.append((position, snapshot))

    async def load(self, session_id: str) -> StoredSession:
        assert self.record is not None
        position, snapshot = self.snapshots[-1]
        return StoredSession(self.record, self.swapped or snapshot, position, ())

    async def fork(self, tenant: str, session_id: str, child: SessionRecord) -> SessionRecord:
        self.forks.add(child.id)
        return child

    async def delete(self, tenant: str, session_id: str) -> None:
        self.forks.remove(session_id)


@pytest.fixture(scope="module")
def state(runner: Runner) -> bytes:
    runner.restore(0, None)
    runner.run([Feed("read", 0, repeated(runner.reader, TEXT, 600), None)])
    _, data = runner.save(0)
    return data


def _parking(runner: Runner, store: OneSession) -> Parking:
    return Parking(runner, store, PlainSealer(), read_on(runner.reader, "lo mi"))  # type: ignore[arg-type]


async def test_every_cycle_takes_in_a_token_and_saves_what_is_new(runner: Runner, state: bytes) -> None:
    store = OneSession()
    session_id, parked = await _parking(runner, store).measure(state, [5, 6, 7])
    assert session_id.startswith("sess_")
    assert store.journaled == [5, 6, 7]
    assert [position for position, _ in store.snapshots] == [600, 601, 602, 603]
    assert len({snapshot for _, snapshot in store.snapshots}) == 4
    assert len(parked.cycles) == 3
    assert parked.state_bytes == len(state)
    cycle = parked.cycles[0]
    assert cycle.resume == pytest.approx(cycle.load + cycle.restore + cycle.first_token)
    assert min(cycle.encode, cycle.seal, cycle.save, cycle.load, cycle.restore, cycle.first_token, cycle.fork) > 0
    assert not store.forks


async def test_a_session_that_comes_back_as_another_is_found_out(runner: Runner, state: bytes) -> None:
    runner.restore(1, None)
    runner.run([Feed("other", 1, read_on(runner.reader, "zu vo 7 7 7"), None)])
    _, other = runner.save(1)
    with pytest.raises(ResumedOtherwiseError):
        await _parking(runner, OneSession(swapped=other)).measure(state, [5])


async def test_a_ratio_to_what_was_not_read_to_its_end_is_marked_as_least(runner: Runner, state: bytes) -> None:
    _, parked = await _parking(runner, OneSession()).measure(state, [5, 6, 7])
    seen = Reread(tokens=400, seconds=9.5, first_token=0.5, state_bytes=10, save=1, load=0.25, first_token_loaded=0.5)
    complete, partial = (row(tokens, parked, 1000, 100.0, seen) for tokens in (400, 600))
    assert complete.llama is not None
    assert partial.llama is not None
    assert (complete.llama.reread_complete, partial.llama.reread_complete) == (True, False)
    assert partial.llama.reread_ratio == pytest.approx(10_000 / parked.median("resume"), rel=0.01)
    assert partial.llama.resume_ms == 750
    assert partial.own_reread_s == 6.0
    _, whole, part = (list(column.cells) for column in table([complete, partial]).columns)
    assert not any(">" in str(cell) for cell in whole)
    assert [str(cell)[:2] for cell in part[-5:]] == ["40", "> ", "> ", "0", "75"]
    assert row(600, parked, 1000, 100.0, None).llama is None
