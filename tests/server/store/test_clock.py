"""The embedded store's own clock: what is done to the machine's does not reach it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from server.store import clock
from server.store.base import JournalEntry, LeaseHeld, OperationRecord, SessionRecord
from server.store.embedded import EmbeddedStore

DAY = 86_400.0


def record(ttl_seconds: int | None = None) -> SessionRecord:
    now = time.time()
    return SessionRecord("sess_one", "tenant", "model", "window", now, now, ttl_seconds=ttl_seconds)


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds to add to the machine's clock: change the only entry."""
    honest, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: honest() + offset[0])
    return offset


@pytest.mark.parametrize("seconds", [DAY, -DAY, 3650 * DAY, -3650 * DAY])
async def test_a_jump_expires_nothing_and_prolongs_nothing(tmp_path: Path, jump: list[float], seconds: float) -> None:
    first, second = EmbeddedStore(tmp_path), EmbeddedStore(tmp_path)
    await first.open()
    await first.create(record(ttl_seconds=3600))
    lease = await first.acquire("sess_one", "one/0/a", 60)
    await first.journal(
        [JournalEntry(lease, 0, [1], "", 0, "none", operation=OperationRecord("op", "digest", 1, 1))],
    )
    expires_at = (await first.head("sess_one")).expires_at
    jump[0] = seconds
    await second.open()  # begun behind the jump, as a server that is started again
    for store in (first, second):
        assert await store.sweep() == 0
        assert await store.operation("sess_one", "op") is not None
        assert (await store.head("sess_one")).expires_at == expires_at
        with pytest.raises(LeaseHeld) as held:
            await store.acquire("sess_one", "two/0/a", 60)
        assert 50 < held.value.seconds <= 60
    for store in (first, second):
        await store.close()


async def test_the_next_start_of_the_machine_reads_its_clock_anew(
    tmp_path: Path, jump: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddedStore(tmp_path / "data")
    await store.open()
    await store.create(record(ttl_seconds=3600))
    await store.close()
    jump[0] = DAY
    boot = tmp_path / "boot"
    boot.write_text("another start\n")
    monkeypatch.setattr(clock, "_BOOT", boot)
    store = EmbeddedStore(tmp_path / "data")
    await store.open()
    assert await store.sweep() == 1
    await store.close()


async def test_without_a_name_for_the_start_each_process_reads_for_itself(
    tmp_path: Path, jump: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "_BOOT", tmp_path / "missing")
    store = EmbeddedStore(tmp_path / "data")
    await store.open()
    jump[0] = DAY
    created = await store.create(record())
    updated = await store.update("tenant", created.id, metadata={"a": "b"})
    assert abs(updated.updated_at - (time.time() - DAY)) < 60
    await store.close()
