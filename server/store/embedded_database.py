"""What every function of the embedded store works with: a connection, and how content is sealed before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw

from server.errors import StoreUnavailable
from server.store.failures import translated
from server.store.schema import connect, reading, transaction
from server.store.sealing import Sealer
from server.store.threads import WorkThreads

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Database:
    """One connection, used by one thread at a time. Every method blocks."""

    connection: apsw.Connection
    sealer: Sealer

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction; undone if anything fails."""
        with transaction(self.connection):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One read transaction: every statement in it sees the same moment."""
        with reading(self.connection):
            yield

    def run(self, statement: str, values: dict[str, Any]) -> int:
        """Execute a statement that gives no rows; how many it changed."""
        self.connection.execute(statement, values)
        return self.connection.changes()

    def row(self, statement: str, values: dict[str, Any]) -> Row | None:
        """The first row."""
        row: Row | None = self.connection.execute(statement, values).fetchone()
        return row

    def rows(self, statement: str, values: dict[str, Any]) -> list[Row]:
        """Every row."""
        return self.connection.execute(statement, values).fetchall()


class DatabaseThread:
    """The one connection of a store, and the thread on which everything that uses it is done, in turn."""

    def __init__(self, path: Path, sealer: Sealer) -> None:
        self._path, self._sealer = path, sealer
        self._threads = WorkThreads("store-database")
        self._database: Database | None = None

    async def open(self, prepare: Callable[[], None]) -> None:
        """Do `prepare`, then connect, unless connected. Raises `StoreUnavailable` for a database that cannot be used."""
        await self._threads.run(lambda: self._open(prepare))

    async def run(
        self,
        work: Callable[Concatenate[Database, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Do `work` with the connection. It is done even when the caller is cancelled."""
        return await self._threads.run(lambda: self._connected(work, *args, **kwargs))

    def wait(
        self,
        work: Callable[Concatenate[Database, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """As `run`, for other threads."""
        return self._threads.wait(lambda: self._connected(work, *args, **kwargs))

    def close(self) -> None:
        """Finish what was begun and disconnect. Blocks."""
        self._threads.shutdown()
        if self._database is not None:
            self._database.connection.close()
            self._database = None

    def _open(self, prepare: Callable[[], None]) -> None:
        with translated():
            prepare()
            if self._database is None:
                self._database = Database(connect(self._path, self._sealer), self._sealer)

    def _connected(
        self,
        work: Callable[Concatenate[Database, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        if self._database is None:
            raise StoreUnavailable("The store is not open yet. Try again when the server is ready.")
        with translated():
            return work(self._database, *args, **kwargs)
