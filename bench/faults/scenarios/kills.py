"""SIGKILL at random times: of the worker, of the whole server, of Redis."""

from __future__ import annotations

import asyncio

from bench.faults.account import Account
from bench.faults.load import while_writing
from bench.faults.stage import Stage


async def worker_killed(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """The server starts another worker, which goes on from the store."""
    server = await stage.server("a", redis=await stage.redis() if on_redis else None)
    author = await stage.author("ada", [server])

    async def strike() -> None:
        await asyncio.sleep(stage.choose.uniform(0.1, 1.0))
        await server.kill_worker()

    for number in range(stage.rounds(3)):
        await while_writing([author], strike)
        account.settle(f"kill {number + 1}", await stage.judge(author, [server]))


async def server_killed(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """HTTP process and worker die together, and start again under their name."""
    server = await stage.server("a", redis=await stage.redis() if on_redis else None)
    author = await stage.author("ada", [server])

    async def strike() -> None:
        await asyncio.sleep(stage.choose.uniform(0.1, 1.0))
        await server.restart()

    for number in range(stage.rounds(3)):
        await while_writing([author], strike)
        account.settle(f"kill {number + 1}", await stage.judge(author, [server]))


async def redis_killed(stage: Stage, account: Account) -> None:
    """Redis with `appendfsync always` dies, stays away for a while, and comes back with all it has acknowledged."""
    redis = await stage.redis()
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])

    async def strike() -> None:
        await asyncio.sleep(stage.choose.uniform(0.1, 1.0))
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep(stage.choose.choice([0.0, 1.5, 3.0]))
        await asyncio.to_thread(redis.start)
        await asyncio.sleep(0.5)

    for number in range(stage.rounds(4)):
        await while_writing([author], strike)
        account.settle(f"kill {number + 1}", await stage.judge(author, [server]))
