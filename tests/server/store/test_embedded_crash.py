"""The embedded store under SIGKILL, and with several processes at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import server
from server.store.base import LeaseHeld, StoredSession
from server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from tests.server.store.conftest import Make

WRITER = Path(__file__).with_name("crash_writer.py")
ENDLESS = 1_000_000
SNAPSHOT_BYTES = 1 << 20


async def start_writer(folder: Path, session_id: str, mode: str, steps: int = ENDLESS, failpoints: str = "") -> Process:
    environment = os.environ | {"PYTHONPATH": str(Path(server.__file__).parents[1])}
    if failpoints:
        environment |= {"PALIMPSEST_FAILPOINTS": failpoints, "PALIMPSEST_FAILPOINTS_DIR": str(folder.parent)}
    arguments = (str(WRITER), str(folder), session_id, mode, str(steps))
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE, env=environment)


async def read_number(process: Process) -> int:
    assert process.stdout is not None
    return int(await process.stdout.readline())


async def kill_after(process: Process, acknowledged: int, seconds: float) -> int:
    """SIGKILL the writer a moment after so many lines; the last position it acknowledged."""
    last = 0
    try:
        for _ in range(acknowledged):
            last = await read_number(process)
        await asyncio.sleep(seconds)
    finally:
        process.kill()
        output, _ = await process.communicate()
    # The last line may be cut short, and then was not acknowledged.
    whole = output[: output.rfind(b"\n") + 1].split()
    return int(whole[-1]) if whole else last


async def load(folder: Path, session_id: str = "sess_one") -> StoredSession:
    store = EmbeddedStore(folder)
    await store.open()
    try:
        return await store.load(session_id)
    finally:
        await store.close()


def assert_whole(loaded: StoredSession) -> None:
    """Tokens count up from 0, so snapshot and tail must cover 0 to `journaled` exactly."""
    assert loaded.tail == tuple(range(loaded.snapshot_position, loaded.record.journaled))
    if loaded.snapshot is not None:
        expected = loaded.snapshot_position.to_bytes(8, "little") * (SNAPSHOT_BYTES // 8)
        assert loaded.snapshot == expected


@pytest.mark.parametrize("mode", ["journal", "snapshots"])
async def test_every_acknowledged_entry_survives_sigkill(folder: Path, mode: str) -> None:
    before = 0
    for round_number in range(5):
        process = await start_writer(folder, "sess_one", mode)
        acknowledged = await kill_after(process, 3 + 4 * round_number, seconds=0.0017 * round_number)
        loaded = await load(folder)
        assert_whole(loaded)
        # At most the step that was under way when it died was written without being acknowledged.
        assert before < acknowledged <= loaded.record.journaled <= acknowledged + 3
        before = acknowledged


async def test_what_killed_writers_leave_behind_is_swept(folder: Path) -> None:
    for _ in range(3):
        await kill_after(await start_writer(folder, "sess_one", "snapshots"), 2, seconds=0.003)
    for path in (folder / "snapshots").iterdir():
        os.utime(path, (0, 0))
    store = EmbeddedStore(folder)
    await store.open()
    assert await store.sweep() == 0
    assert_whole(await store.load("sess_one"))
    await store.close()
    assert len(list((folder / "snapshots").iterdir())) <= 2


async def test_processes_write_their_own_sessions_side_by_side(folder: Path) -> None:
    names = ("sess_one", "sess_two", "sess_three")
    writers = [await start_writer(folder, name, "snapshots", steps=20) for name in names]
    outputs = [await writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    for name, (output, _) in zip(names, outputs, strict=True):
        loaded = await load(folder, name)
        assert_whole(loaded)
        assert loaded.record.journaled == int(output.split()[-1])


async def test_a_process_that_takes_over_stops_the_one_before(folder: Path, make: Make) -> None:
    first = await start_writer(folder, "sess_one", "snapshots")
    await read_number(first)
    store = EmbeddedStore(folder)
    await store.open()
    try:
        lease = await store.acquire("sess_one", f"crash/0/{time.time_ns()}", 60)
        start = (await store.load("sess_one")).record.journaled
        await make.written(store, make.entry(lease, start, [start]))
        async with asyncio.timeout(20):
            await first.communicate()
        loaded = await store.load("sess_one")
        assert loaded.record.journaled == start + 1
        assert_whole(loaded)
    finally:
        await store.close()


async def test_a_killed_holder_is_superseded_at_once_and_a_stopped_one_is_not(folder: Path) -> None:
    process = await start_writer(folder, "sess_one", "journal", failpoints="journal.before=stop@3")
    store = EmbeddedStore(folder)
    await store.open()
    try:
        for _ in range(2):
            await read_number(process)
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(LeaseHeld):
            await store.acquire("sess_one", "other/0/1", 60)
        process.kill()
        await process.wait()
        await store.acquire("sess_one", "other/0/1", 60)
        assert_whole(await store.load("sess_one"))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        await store.close()


_PLACES = {
    "acquire.before": 1,
    "acquire.after": 1,
    "load.before": 1,
    "journal.before": 3,
    "journal.after": 3,
    "snapshot.before": 3,
    "snapshot.written": 3,
    "snapshot.pointed": 3,
}


@pytest.mark.parametrize("place", _PLACES)
async def test_a_death_at_each_place_loses_nothing_that_was_acknowledged(folder: Path, make: Make, place: str) -> None:
    process = await start_writer(folder, "sess_one", "snapshots", failpoints=f"{place}=kill@{_PLACES[place]}")
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    store = EmbeddedStore(folder)
    await store.open()
    try:
        loaded = await store.load("sess_one")
        assert_whole(loaded)
        assert loaded.skipped == 0
        acknowledged = int(output.split()[-1]) if output else 0
        assert acknowledged <= loaded.record.journaled <= acknowledged + 3
        lease = await store.acquire("sess_one", "other/0/1", 60)
        await make.appended(store, lease, loaded.record.journaled)
        assert_whole(await store.load("sess_one"))
    finally:
        await store.close()
