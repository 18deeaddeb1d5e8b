"""A folder of the embedded store, looked into from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from server.store.base import Lease
from server.store.embedded import EmbeddedStore
from server.store.embedded_database import Database

if TYPE_CHECKING:
    from tests.server.store.conftest import Make


ONE = "sess_one"
TENANT = "tenant"


def snapshot_files(folder: Path) -> list[Path]:
    return sorted((folder / "snapshots").iterdir())


def grow_old(path: Path, seconds: float = 120) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


async def session_with_snapshot(store: EmbeddedStore, make: Make, session_id: str = ONE) -> Lease:
    lease = await make.begun(store, session_id)
    await make.written(store, make.entry(lease, 0, [0, 1, 2]))
    await store.save_snapshot(lease, 2, b"state")
    return lease


@contextmanager
def open_database(folder: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(folder / "palimpsest.db"))
    yield connection
    connection.close()


def execute(database: Database, statement: str) -> None:
    database.connection.execute(statement)
