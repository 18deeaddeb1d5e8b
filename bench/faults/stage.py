"""Where a fault takes place: servers, Redis and proxies in a folder of their own, all gone when it is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from bench.faults.account import Verdict
from bench.faults.author import Author, Pace
from bench.faults.judge import Judge
from bench.faults.ledger import Ledger
from bench.faults.proxy import Proxy
from bench.faults.server import Server
from bench.faults.wire import HasUrl
from bench.redis_process import RedisProcess
from bench.server_process import ServerProcess

MEMORY = {"window": 32, "segment": 16, "slots": 24, "sinks": 4}
"""So small that it folds all the time."""
HASTE = {
    "dtype": "float32",
    "threads": 1,
    "snapshot_tokens": 64,
    "snapshot_seconds": 1,
    "idle_seconds": 0.2,
    "lease_seconds": 2,
    "drain_seconds": 5,
}
"""What makes everything happen often that may go wrong."""
READY_SECONDS = 60.0


class Stage:
    """One fault's. `model` holds what every server is told of its model, `quick` asks for fewer points."""

    def __init__(
        self, folder: Path, model: Mapping[str, object], choose: random.Random, judge: Judge | None, *, quick: bool
    ) -> None:
        self.folder, self.choose, self.quick = folder, choose, quick
        self._model, self._judge = model, judge
        self._open = AsyncExitStack()
        self._begun = 0

    def rounds(self, usually: int, quickly: int = 1) -> int:
        """How often to do something."""
        return quickly if self.quick else usually

    async def server(
        self,
        name: str,
        *,
        redis: RedisProcess | Proxy | None = None,
        failpoints: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        start: bool = True,
        **settings: object,
    ) -> Server:
        """A server of that name, which keeps it over its lives. Without `redis` it has an embedded store."""
        folder = self._folder(name)
        points = folder / "failpoints"
        points.mkdir()
        store = {"store": redis.url} if redis else {}
        process = ServerProcess(
            {**self._model, **HASTE, **store, "server_id": name, "data_dir": folder / "data", **settings},
            folder / "server.log",
            environment={
                "OMP_NUM_THREADS": "1",
                "PALIMPSEST_FAILPOINTS": ",".join(failpoints),
                "PALIMPSEST_FAILPOINTS_DIR": str(points),
                **(environment or {}),
            },
            within=within,
            alone=True,
            ready_seconds=READY_SECONDS,
        )
        server = Server(process, points)
        self._open.push_async_callback(server.end)
        if start:
            await server.start()
        return server

    async def redis(
        self, *, appendfsync: Literal["always", "everysec"] = "always", maxmemory: int | None = None
    ) -> RedisProcess:
        """A Redis that runs."""
        redis = RedisProcess(self._folder("redis"), appendfsync=appendfsync, maxmemory=maxmemory)
        self._open.push_async_callback(asyncio.to_thread, redis.kill)
        await asyncio.to_thread(redis.start)
        return redis

    async def proxy(self, redis: RedisProcess) -> Proxy:
        """A proxy before it."""
        return await self._open.enter_async_context(Proxy(redis.port))

    async def author(
        self, name: str, servers: Sequence[HasUrl], *, beside: Author | None = None, pace: Pace | None = None
    ) -> Author:
        """Somebody who writes into a session of his own, or into that of `beside`."""
        if beside is not None:
            session_id, ledger = beside.session_id, beside.ledger
        else:
            session_id, ledger = await self._create(name, servers), Ledger()
        return await self.author_of(name, session_id, ledger, servers, pace=pace)

    async def author_of(
        self, name: str, session_id: str, ledger: Ledger, servers: Sequence[HasUrl], *, pace: Pace | None = None
    ) -> Author:
        """Somebody who goes on with a session."""
        author = Author(name, session_id, ledger, servers, random.Random(self.choose.random()), pace=pace)
        return await self._open.enter_async_context(author)

    async def judge(self, author: Author, servers: Sequence[HasUrl], *, repeat: bool = True) -> Verdict:
        """What is wrong with the author's session."""
        assert self._judge is not None
        return await self._judge.judge(servers, author.session_id, author.ledger, repeat=repeat)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _create(self, name: str, servers: Sequence[HasUrl]) -> str:
        op_id = f"create-{name}-{self.choose.random()}"
        async with Author(name, "", Ledger(), servers, self.choose) as creator:
            return await creator.insist(lambda wire: wire.create(op_id=op_id), "creating a session")

    def _folder(self, name: str) -> Path:
        self._begun += 1
        folder = self.folder / f"{self._begun}-{name}"
        folder.mkdir(parents=True)
        return folder
