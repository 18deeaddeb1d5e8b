"""A process that writes one session until it is killed, and prints what was acknowledged, one number a line.

Run as `python crash_writer.py FOLDER SESSION journal|snapshots STEPS`. Tokens count up from 0, so that a gap,
a loss or a repetition shows. It stops by itself after STEPS, or when another process takes the session over.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from server.errors import NotFound, StaleLease
from server.store.base import JournalEntry, SessionRecord
from server.store.embedded import EmbeddedStore

SNAPSHOT_BYTES = 1 << 20


def snapshot_at(position: int) -> bytes:
    """A megabyte that only a snapshot at `position` can be."""
    return position.to_bytes(8, "little") * (SNAPSHOT_BYTES // 8)


async def write(store: EmbeddedStore, session_id: str, mode: str, steps: int) -> None:
    """Append, and in the mode `snapshots` save each time, until somebody newer takes over."""
    try:
        await store.get("tenant", session_id)
    except NotFound:
        await store.create(SessionRecord(session_id, "tenant", "model", "window", 1.0, 1.0))
    lease = await store.acquire(session_id, f"crash/0/{time.time_ns()}", 60)
    position = (await store.load(session_id)).record.journaled
    for step in range(steps):
        tokens = range(position, position + 1 + step % 3)
        [outcome] = await store.journal([JournalEntry(lease, position, tokens, "", 0, "none")])
        if isinstance(outcome, StaleLease):
            return
        assert isinstance(outcome, str), outcome
        position += len(tokens)
        if mode == "snapshots":
            await store.save_snapshot(lease, position, snapshot_at(position))
        print(position, flush=True)


async def main() -> None:
    """Open the store, write, close it."""
    folder, session_id, mode, steps = sys.argv[1:]
    store = EmbeddedStore(Path(folder))
    await store.open()
    try:
        await write(store, session_id, mode, int(steps))
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main())
