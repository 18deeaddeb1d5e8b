"""The way to Redis: cut before, amid and after a command; slow; half open."""

from __future__ import annotations

import asyncio

from bench.faults.account import Account
from bench.faults.author import Pace
from bench.faults.load import while_writing
from bench.faults.proxy import SCRIPTS, Cut, Where
from bench.faults.stage import Stage

BLOBS = frozenset({"SET"})


async def connection_cut(stage: Stage, account: Account, *, where: Where) -> None:
    """One connection is reset at a script, at a snapshot's bytes, and at a read."""
    proxy = await stage.proxy(await stage.redis())
    server = await stage.server("a", redis=proxy)
    author = await stage.author("ada", [server])
    kinds = [SCRIPTS, SCRIPTS, SCRIPTS, BLOBS]
    for names in kinds[: stage.rounds(len(kinds))]:
        cut = Cut(where, names=names, skip=stage.choose.randint(0, 8), share=stage.choose.random())

        async def reached(cut: Cut = cut) -> None:
            proxy.cut(cut)
            async with asyncio.timeout(20.0):
                await cut.reached.wait()

        await while_writing([author], reached)
        account.settle("/".join(sorted(names)), await stage.judge(author, [server]))


async def all_connections_reset(stage: Stage, account: Account) -> None:
    """Every connection at once, several times, as when a switch restarts; reads are hit like writes."""
    proxy = await stage.proxy(await stage.redis())
    server = await stage.server("a", redis=proxy)
    author = await stage.author("ada", [server])

    async def reset() -> None:
        for _ in range(stage.rounds(8, 3)):
            await asyncio.sleep(stage.choose.uniform(0.05, 0.5))
            proxy.reset_all()

    await while_writing([author], reset)
    account.settle("resets", await stage.judge(author, [server]))


async def connection_slow(stage: Stage, account: Account) -> None:
    """A way that is slow but bearable, then one slower than every timeout, then a good one again."""
    proxy = await stage.proxy(await stage.redis())
    server = await stage.server("a", redis=proxy)
    author = await stage.author("ada", [server], pace=Pace(patience=8.0))

    async def slow() -> None:
        proxy.delay(0.15)
        await asyncio.sleep(2.0)
        proxy.delay(1.5)
        await asyncio.sleep(3.0)
        proxy.delay(0.0)
        await asyncio.sleep(0.5)

    await while_writing([author], slow)
    account.settle("delay", await stage.judge(author, [server]))


async def connection_half_open(stage: Stage, account: Account) -> None:
    """Redis seems to be there and says nothing; what was sent meanwhile is lost on the way."""
    proxy = await stage.proxy(await stage.redis())
    server = await stage.server("a", redis=proxy)
    author = await stage.author("ada", [server], pace=Pace(patience=8.0))

    async def silence() -> None:
        await asyncio.sleep(stage.choose.uniform(0.2, 0.8))
        proxy.swallow()
        await asyncio.sleep(stage.choose.uniform(1.0, 4.0))
        proxy.relent()
        await asyncio.sleep(0.5)

    for number in range(stage.rounds(2)):
        await while_writing([author], silence)
        account.settle(f"silence {number + 1}", await stage.judge(author, [server]))
