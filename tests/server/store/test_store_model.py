"""Any order of calls, by two workers that hand over and crash, against a few dictionaries that keep the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.errors import Internal, NotFound, OperationMismatch, ServerError, StaleLease
from server.store.base import (
    AlreadyApplied,
    Finish,
    GenerationRecord,
    JournalEntry,
    Lease,
    LeaseHeld,
    OperationRecord,
    SessionRecord,
    Store,
)
from tests.server.store.expected import Expected, Torn

if TYPE_CHECKING:
    from tests.server.store.conftest import Bench


Result = TypeVar("Result")
Worker = Literal[0, 1]
TENANT = "tenant"
LONG = 3_600
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=4)
WORKERS: st.SearchStrategy[Worker] = st.sampled_from((0, 1))
STEPS = 30
EXAMPLES = 50


class StoreMachine(RuleBasedStateMachine):
    """Sessions are made, forked, written, handed over, torn, taken over after crashes, and deleted."""

    sessions: Bundle[str] = Bundle("sessions")
    leases: Bundle[Lease] = Bundle("leases")
    generations: Bundle[str] = Bundle("generations")

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.runner = asyncio.Runner()
        self.sealer = Torn()
        self.expected: dict[str, Expected] = {}
        self.recorded: dict[str, GenerationRecord] = {}
        self.made = 0
        self.incarnations = [1, 1]
        self.dead: set[str] = set()
        self.stores: list[Store] = [bench.store(sealer=self.sealer) for _ in range(2)]

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(call)

    def attempt(self, call: Coroutine[Any, Any, Result]) -> Result | ServerError | LeaseHeld:
        """The result, or what was raised."""
        try:
            return self.run(call)
        except (ServerError, LeaseHeld) as error:
            return error

    def owner(self, worker: Worker) -> str:
        return f"server/{worker}/{self.incarnations[worker]}"

    def teardown(self) -> None:
        for store in self.stores:
            self.run(store.close())
        self.runner.close()

    @initialize()
    def open_stores(self) -> None:
        for store in self.stores:
            self.run(store.open())

    def _new_id(self) -> str:
        self.made += 1
        return f"sess_{self.made}"

    @rule(target=sessions, worker=WORKERS)
    def create(self, worker: Worker) -> str:
        session_id = self._new_id()
        record = self.run(self.stores[worker].create(_record(session_id)))
        self.expected[session_id] = Expected()
        assert self.run(self.stores[1 - worker].create(_record(session_id))) == record
        return session_id

    @rule(target=sessions, worker=WORKERS, parent=sessions)
    def fork(self, worker: Worker, parent: str) -> Any:
        child_id = self._new_id()
        expected = self.expected.get(parent)
        outcome = self.attempt(self.stores[worker].fork(TENANT, parent, _record(child_id)))
        if expected is None:
            assert isinstance(outcome, NotFound)
            return multiple()
        assert isinstance(outcome, SessionRecord)
        child = deepcopy(expected)
        child.fence, child.version, child.holder, child.operations = -1, 1, None, {}
        self.expected[child_id] = child
        return child_id

    @rule(target=sessions, worker=WORKERS, snapshot=st.none() | st.binary(max_size=3), tail=TOKENS)
    def adopt(self, worker: Worker, snapshot: bytes | None, tail: list[int]) -> str:
        session_id = self._new_id()
        begun = 0 if snapshot is None else 3
        record = SessionRecord(session_id, TENANT, "model", "window", 1.0, 1.0, journaled=begun + len(tail))
        content = None if snapshot is None else snapshot + session_id.encode()
        self.run(self.stores[worker].adopt(record, content, tail))
        snapshots = [] if content is None else [(begun, content)]
        self.expected[session_id] = Expected([0] * begun + tail, snapshots=snapshots, whole=content is None)
        return session_id

    @rule(target=leases, worker=WORKERS, session_id=sessions)
    def acquire(self, worker: Worker, session_id: str) -> Any:
        expected = self.expected.get(session_id)
        owner = self.owner(worker)
        lease = self.attempt(self.stores[worker].acquire(session_id, owner, LONG))
        if expected is None:
            assert isinstance(lease, NotFound)
            return multiple()
        if expected.holder is not None and not self._gives_way(expected.holder, owner):
            assert isinstance(lease, LeaseHeld)
            assert lease.owner == expected.holder
            return multiple()
        assert isinstance(lease, Lease)
        assert lease.fence > expected.fence
        expected.fence, expected.holder = lease.fence, owner
        return lease

    def _gives_way(self, holder: str, owner: str) -> bool:
        known_dead = self.bench.kind == "embedded" and holder in self.dead
        return known_dead or holder.rpartition("/")[0] == owner.rpartition("/")[0]

    @rule(worker=WORKERS, lease=leases)
    def release(self, worker: Worker, lease: Lease) -> None:
        self.run(self.stores[worker].release(lease))
        expected = self.expected.get(lease.session_id)
        if expected is not None and lease.fence == expected.fence:
            expected.holder = None

    @rule(worker=WORKERS, lease=leases)
    def renew(self, worker: Worker, lease: Lease) -> None:
        expected = self.expected.get(lease.session_id)
        refusal = self._refusal(lease)
        if expected is not None and expected.holder is None:
            refusal = StaleLease
        [outcome] = self.run(self.stores[worker].renew([lease], LONG))
        assert type(outcome) is refusal

    @rule(worker=WORKERS)
    def crash(self, worker: Worker) -> None:
        self.dead.add(self.owner(worker))
        self.run(self.stores[worker].close())
        self.incarnations[worker] += 1
        self.stores[worker] = self.bench.store(sealer=self.sealer)
        self.run(self.stores[worker].open())

    def _refusal(self, lease: Lease) -> type:
        expected = self.expected.get(lease.session_id)
        if expected is None:
            return NotFound
        return type(None) if lease.fence == expected.fence else StaleLease

    def _length(self, lease: Lease) -> int:
        expected = self.expected.get(lease.session_id)
        return len(expected.tokens) if expected else 0

    @rule(
        worker=WORKERS,
        writes=st.lists(
            st.tuples(leases, TOKENS, st.sampled_from((0, 0, 0, 1)), st.text(max_size=3), st.integers(0, 8)), max_size=3
        ),
    )
    def journal(self, worker: Worker, writes: list[tuple[Lease, list[int], int, str, int]]) -> None:
        entries, outcomes = [], []
        for lease, tokens, gap, text, number in writes:
            operation = OperationRecord(f"op_{number}", f"digest {number % 2}", 1, 1) if number < 6 else None
            if operation is not None and number < 2:
                operation = OperationRecord("op_shared", operation.request_digest, 1, 1)
            start = self._length(lease) + gap
            entries.append(JournalEntry(lease, start, tokens, text, 0, "none", operation))
            outcomes.append(self._expect(entries[-1]))
        found = self.run(self.stores[worker].journal(entries))
        assert [type(outcome) for outcome in found] == outcomes

    def _expect(self, entry: JournalEntry) -> type:
        """What becomes of an entry; and has it become of the model."""
        refusal = self._refusal(entry.lease)
        if refusal is not type(None):
            return refusal
        expected = self.expected[entry.lease.session_id]
        if entry.operation is not None and (known := expected.operations.get(entry.operation.op_id)):
            same = known.request_digest == entry.operation.request_digest
            return AlreadyApplied if same else OperationMismatch
        if entry.start != len(expected.tokens):
            return StaleLease
        expected.tokens += entry.tokens
        expected.open_text = entry.open_text
        expected.version += 1
        if entry.operation is not None:
            expected.operations[entry.operation.op_id] = entry.operation
        return str

    @rule(target=generations, worker=WORKERS, lease=leases, prompt=TOKENS)
    def begin(self, worker: Worker, lease: Lease, prompt: list[int]) -> Any:
        generation_id = f"gen_{self.made}_{len(self.recorded)}"
        start = self._length(lease)
        record = GenerationRecord(generation_id, lease.session_id, b"request", start + len(prompt), len(prompt))
        entry = JournalEntry(lease, start, prompt, "", 0, "none", begins=record)
        expected = self._expect(entry)
        [outcome] = self.run(self.stores[worker].journal([entry]))
        assert type(outcome) is expected
        if expected is not str:
            return multiple()
        self.recorded[generation_id] = record
        return generation_id

    @rule(worker=WORKERS, lease=leases, generation_id=generations, sampled=TOKENS, last=st.booleans())
    def sample(self, worker: Worker, lease: Lease, generation_id: str, sampled: list[int], last: bool) -> None:
        known = self.recorded.get(generation_id)
        finish = Finish("length", len(sampled), 1) if last else None
        entry = JournalEntry(
            lease, self._length(lease), sampled, "", 0, "none", sampled_by=generation_id, finish=finish
        )
        refusal = self._refusal(lease)
        fits = known is not None and known.session_id == lease.session_id and known.finish is None
        expected = refusal if refusal is not type(None) else self._expect(entry) if fits else Internal
        [outcome] = self.run(self.stores[worker].journal([entry]))
        assert type(outcome) is expected
        if expected is str and known is not None:
            self.recorded[generation_id] = GenerationRecord(
                known.id,
                known.session_id,
                known.request,
                known.start,
                known.prompt_tokens,
                (*known.tokens, *sampled),
                finish,
            )

    @rule(worker=WORKERS, lease=leases, position=st.integers(0, 12), back=st.booleans())
    def save_snapshot(self, worker: Worker, lease: Lease, position: int, back: bool) -> None:
        self.made += 1
        position = max(0, self._length(lease) - position % 3) if back else position
        content = b"snapshot %d" % self.made
        expected = self.expected.get(lease.session_id)
        refusal = self._refusal(lease)
        if refusal is type(None) and position > self._length(lease):
            refusal = StaleLease
        outcome = self.attempt(self.stores[worker].save_snapshot(lease, position, content))
        assert type(outcome) is refusal
        if expected is None or refusal is not type(None):
            return
        if not expected.snapshots or position >= expected.snapshots[-1][0]:
            expected.snapshots = [*expected.snapshots[-1:], (position, content)]
            expected.whole = expected.whole and len(expected.snapshots) < 2

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        """Damage a snapshot without which every session can still be had."""
        candidates = {content for expected in self.expected.values() for _, content in expected.snapshots}
        spare = sorted(content for content in candidates if self._can_be_spared(content))
        if spare:
            self.sealer.torn.add(data.draw(st.sampled_from(spare)))

    def _can_be_spared(self, content: bytes) -> bool:
        torn = self.sealer.torn | {content}
        return all(expected.way(torn) is not None for expected in self.expected.values())

    @rule(worker=WORKERS, session_id=sessions)
    def delete(self, worker: Worker, session_id: str) -> None:
        known = self.expected.pop(session_id, None) is not None
        self.recorded = {key: each for key, each in self.recorded.items() if each.session_id != session_id}
        outcome = self.attempt(self.stores[worker].delete(TENANT, session_id))
        assert type(outcome) is (type(None) if known else NotFound)

    @rule(worker=WORKERS)
    def sweep(self, worker: Worker) -> None:
        assert self.run(self.stores[worker].sweep()) == 0

    @invariant()
    def sessions_are_as_expected(self) -> None:
        if not self.made:
            return
        page = self.run(self.stores[0].list(TENANT, limit=100, after=None, order="asc"))
        assert {record.id for record in page.records} == set(self.expected)
        for session_id, expected in self.expected.items():
            loaded = self.run(self.stores[1].load(session_id))
            way = expected.way(self.sealer.torn)
            assert (loaded.snapshot_position, loaded.snapshot, loaded.skipped) == way
            assert list(loaded.tail) == expected.tokens[loaded.snapshot_position :]
            record = loaded.record
            assert (record.journaled, record.version) == (len(expected.tokens), expected.version)
            assert record.open_text == expected.open_text

    @invariant()
    def generations_are_as_expected(self) -> None:
        for generation_id, expected in self.recorded.items():
            assert self.run(self.stores[0].generation(generation_id)) == expected

    @invariant()
    def no_file_stays_that_nobody_needs(self) -> None:
        if self.bench.kind == "embedded" and self.made:
            needed = {content for expected in self.expected.values() for _, content in expected.snapshots}
            assert len(list((self.bench.folder / "snapshots").iterdir())) == len(needed)


def _record(session_id: str) -> SessionRecord:
    return SessionRecord(session_id, TENANT, "model", "window", 1.0, 1.0)


@pytest.mark.parametrize("bench", ["embedded", "redis"], indirect=True)
def test_any_order_of_calls_keeps_the_contract(bench: Bench) -> None:
    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(bench.again())

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
