"""Several servers on one Redis, and one session that all of them want."""

from __future__ import annotations

import asyncio

from bench.faults.account import Account
from bench.faults.load import come_true, while_writing
from bench.faults.server import Server
from bench.faults.stage import Stage

FIGHT_SECONDS = 60
SHORT_FIGHT_SECONDS = 10


async def two_servers_fight(stage: Stage, account: Account) -> None:
    """Two authors write into one session, each through a server of his own, and both get on."""
    redis = await stage.redis()
    first, second = [await stage.server(name, redis=redis) for name in ("a", "b")]
    ada = await stage.author("ada", [first])
    bob = await stage.author("bob", [second], beside=ada)

    async def fight() -> None:
        await asyncio.sleep(stage.rounds(FIGHT_SECONDS, SHORT_FIGHT_SECONDS))

    await while_writing([ada, bob], fight, least=12)
    account.settle("session", await stage.judge(ada, [first, second]))
    refused = [refusal for author in (ada, bob) for refusal in author.refusals]
    silent = [refusal.code for refusal in refused if refusal.retry_after is None]
    account.check("Retry-After", not silent, f"refusals without Retry-After: {sorted(set(silent))}")


async def hand_over_fails(stage: Stage, account: Account) -> None:
    """The holder dies when it is about to hand the session over, or to let go of it."""
    redis = await stage.redis()
    places = ["handover.before", "release.before"]
    first = await stage.server("a", redis=redis, failpoints=[f"{place}=kill@2" for place in places])
    second = await stage.server("b", redis=redis)
    ada = await stage.author("ada", [first])
    bob = await stage.author("bob", [second], beside=ada)

    async def reached() -> None:
        await come_true(lambda: first.reached.issuperset(places), f"places {places}", 90.0)

    await while_writing([ada, bob], reached)
    account.settle("both places", await stage.judge(ada, [first, second]))


async def servers_replaced_in_turn(stage: Stage, account: Account) -> None:
    """A rolling restart: SIGTERM to one server after the other while a client writes through whichever answers."""
    redis = await stage.redis()
    servers = [await stage.server(name, redis=redis) for name in ("a", "b")]
    author = await stage.author("ada", servers)
    for server in servers[: stage.rounds(2)]:

        async def replace(server: Server = server) -> None:
            await asyncio.sleep(0.5)
            await server.stop()
            await server.start()

        await while_writing([author], replace)
        account.settle("replaced", await stage.judge(author, servers))
