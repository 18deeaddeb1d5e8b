"""What a sweep of the embedded store takes, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.errors import StoreUnavailable
from server.store import embedded_snapshots
from server.store.embedded import EmbeddedStore
from server.store.embedded_database import Database
from tests.server.store.folders import ONE, TENANT, grow_old, session_with_snapshot, snapshot_files

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make


def _sizes(database: Database, tables: Sequence[str]) -> list[int]:
    return [len(database.rows(f"SELECT 1 FROM {table}", {})) for table in tables]


async def test_a_sweep_takes_old_orphans_only(embedded: EmbeddedStore, make: Make, folder: Path) -> None:
    await session_with_snapshot(embedded, make)
    [current] = snapshot_files(folder)
    names = ("sess_x.0a.snapshot", "sess_x.0b.snapshot.partial", "sess_x.0c.snapshot", "notes.txt")
    orphan, half, young, foreign = (folder / "snapshots" / name for name in names)
    for path in (orphan, half, young, foreign):
        path.write_bytes(b"left over")
    for path in (current, orphan, half, foreign):
        grow_old(path)
    assert await embedded.sweep() == 0
    assert set(snapshot_files(folder)) == {current, young, foreign}
    assert (await embedded.load(ONE)).snapshot == b"state"


async def test_a_sweep_removes_what_is_remembered_no_longer(embedded: EmbeddedStore, make: Make, clock: Clock) -> None:
    lease = await make.begun(embedded)
    begins = make.generation(tokens=[7])
    await make.written(embedded, make.entry(lease, 0, [7], operation=make.operation(), begins=begins))
    await embedded.claim(TENANT, "op_one", "digest", ONE)
    tables = ("operations", "generations", "generation_tokens", "claims")

    async def rows() -> list[int]:
        return await embedded._database.run(_sizes, tables)

    await embedded.sweep()
    assert await rows() == [1, 1, 1, 1]
    clock.forward(86_400)
    await embedded.sweep()
    assert await rows() == [0, 0, 0, 0]


async def test_a_sweep_removes_the_files_of_expired_sessions(
    embedded: EmbeddedStore, make: Make, folder: Path, clock: Clock
) -> None:
    await session_with_snapshot(embedded, make)
    await embedded.update(TENANT, ONE, ttl_seconds=10)
    clock.forward(11)
    assert await embedded.sweep() == 1
    assert snapshot_files(folder) == []


async def test_a_snapshot_that_a_sweep_took_before_its_pointer_is_not_pointed_to(
    embedded: EmbeddedStore, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer stands still for a minute between its file and its transaction."""
    lease = await session_with_snapshot(embedded, make)
    write = embedded._snapshots._files.write

    def write_and_stall(session_id: str, content: bytes) -> str:
        name = write(session_id, content)
        grow_old(folder / "snapshots" / name)
        old = embedded._snapshots._files.older_than(60)
        embedded._database.wait(embedded_snapshots.remove_unreferenced, old, embedded._snapshots._files.remove)
        return name

    monkeypatch.setattr(embedded._snapshots._files, "write", write_and_stall)
    with pytest.raises(StoreUnavailable, match="written again"):
        await embedded.save_snapshot(lease, 3, b"stalled")
    loaded = await embedded.load(ONE)
    assert (loaded.snapshot, loaded.snapshot_position, loaded.tail) == (b"state", 2, (2,))
