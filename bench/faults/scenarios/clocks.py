"""The wall clock jumps by a day and by ten years, to and fro, while sessions live."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.faults.account import Account
from bench.faults.load import while_writing
from bench.faults.stage import Stage

DAY = 86_400
CLOCK = Path(__file__).parents[1] / "clock"
"""Has the `sitecustomize` that lies."""
JUMPS = {
    "a day on": DAY,
    "ten years back": -3650 * DAY,
    "ten years on": 3650 * DAY,
    "a day back": -DAY,
    "right again": 0,
}


async def clock_jumps(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """On Redis another server, whose clock stays right, takes the session over after each jump. An embedded store agrees with
    itself on a clock of its own."""
    redis = await stage.redis() if on_redis else None
    offset = stage.folder / "offset"
    await _set(offset, 0)
    liar = await stage.server("a", redis=redis, environment={"PYTHONPATH": str(CLOCK), "FAULTS_CLOCK": str(offset)})
    ada = await stage.author("ada", [liar])
    authors, servers = [ada], [liar]
    if on_redis:
        servers.append(await stage.server("b", redis=redis))
        authors.append(await stage.author("bob", [servers[1]], beside=ada))
    for name, seconds in list(JUMPS.items())[: stage.rounds(len(JUMPS), 2)]:

        async def jump(seconds: int = seconds) -> None:
            await asyncio.sleep(0.3)
            await _set(offset, seconds)
            # Long enough for leases to be renewed and for a snapshot.
            await asyncio.sleep(1.5)

        await while_writing(authors, jump)
        account.settle(name, await stage.judge(ada, servers))
    await liar.restart()
    account.check("restart", await liar.readiness() == 200, "not ready after a restart")


async def _set(offset: Path, seconds: int) -> None:
    """At once, so that nobody reads half a number."""
    fresh = offset.with_suffix(".new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(str(seconds))
    fresh.replace(offset)
