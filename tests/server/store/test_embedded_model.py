"""Any order of calls on the embedded store, against a dictionary that does the same."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from server.errors import Internal, NotFound, StaleLease
from server.store.base import JournalEntry, Lease, SessionRecord
from server.store.embedded import EmbeddedStore

Result = TypeVar("Result")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=5)


@dataclass
class Expected:
    """What a session should be."""

    tokens: list[int] = field(default_factory=list)
    fence: int = 0
    version: int = 1
    snapshot: tuple[int, bytes] | None = None
    open_text: str = ""


class StoreMachine(RuleBasedStateMachine):
    """Sessions come, are written under old and new leases, are reopened, and go."""

    sessions: Bundle[str] = Bundle("sessions")
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.expected: dict[str, Expected] = {}
        self.made = 0
        self.store = EmbeddedStore(self.folder)

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @initialize()
    def open_store(self) -> None:
        self.run(self.store.open())

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = EmbeddedStore(self.folder)
        self.run(self.store.open())

    @rule(target=sessions)
    def create(self) -> str:
        session_id = f"sess_{self.made}"
        self.made += 1
        self.run(self.store.create(SessionRecord(session_id, "tenant", "model", "window", 1.0, 1.0)))
        self.expected[session_id] = Expected()
        return session_id

    @rule(target=leases, session_id=sessions)
    def acquire(self, session_id: str) -> Any:
        expected = self.expected.get(session_id)
        try:
            lease = self.run(self.store.acquire(session_id, "worker"))
        except NotFound:
            assert expected is None
            return multiple()
        assert expected is not None
        assert lease.fence > expected.fence
        expected.fence = lease.fence
        return lease

    @rule(writes=st.lists(st.tuples(leases, TOKENS, st.sampled_from((0, 0, 1)), st.text(max_size=3)), max_size=4))
    def journal(self, writes: list[tuple[Lease, list[int], int, str]]) -> None:
        entries = []
        outcomes: list[type] = []
        for lease, tokens, gap, text in writes:
            expected = self.expected.get(lease.session_id)
            start = (len(expected.tokens) if expected else 0) + gap
            entries.append(JournalEntry(lease, start, tokens, text, 0, "none"))
            outcomes.append(self._expect_entry(expected, entries[-1]))
        assert [type(outcome) for outcome in self.run(self.store.journal(entries))] == outcomes

    def _expect_entry(self, expected: Expected | None, entry: JournalEntry) -> type:
        if expected is None:
            return NotFound
        if entry.lease.fence != expected.fence:
            return StaleLease
        if entry.start != len(expected.tokens):
            return Internal
        expected.tokens += entry.tokens
        expected.open_text = entry.open_text
        expected.version += 1
        return type(None)

    @rule(lease=leases, position=st.integers(0, 12), content=st.binary(max_size=4))
    def save_snapshot(self, lease: Lease, position: int, content: bytes) -> None:
        expected = self.expected.get(lease.session_id)
        try:
            self.run(self.store.save_snapshot(lease, position, content))
        except NotFound:
            assert expected is None
        except StaleLease:
            assert expected is not None
            assert lease.fence != expected.fence
        except Internal:
            assert expected is not None
            assert position > len(expected.tokens)
        else:
            assert expected is not None
            assert lease.fence == expected.fence
            assert position <= len(expected.tokens)
            if expected.snapshot is None or position >= expected.snapshot[0]:
                expected.snapshot = (position, content)

    @rule(session_id=sessions)
    def delete(self, session_id: str) -> None:
        known = self.expected.pop(session_id, None) is not None
        try:
            self.run(self.store.delete("tenant", session_id))
        except NotFound:
            assert not known
        else:
            assert known

    @invariant()
    def sessions_are_as_expected(self) -> None:
        if self.made == 0:
            return
        page = self.run(self.store.list("tenant", limit=100, after=None, order="asc"))
        assert {record.id for record in page.records} == set(self.expected)
        for session_id, expected in self.expected.items():
            loaded = self.run(self.store.load(session_id))
            position, content = expected.snapshot or (0, None)
            assert (loaded.snapshot_position, loaded.snapshot) == (position, content)
            assert list(loaded.tail) == expected.tokens[position:]
            assert (loaded.record.journaled, loaded.record.version) == (
                len(expected.tokens),
                expected.version,
            )
            assert loaded.record.open_text == expected.open_text
        kept = sum(expected.snapshot is not None for expected in self.expected.values())
        assert len(list((self.folder / "snapshots").iterdir())) == kept


StoreMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStore = StoreMachine.TestCase
