"""A lease holder that stands still past its lease, wakes up late, and still believes the session to be its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bench.faults.account import Account
from bench.faults.author import Author, Pace, send_text
from bench.faults.load import come_true, while_writing
from bench.faults.server import Server
from bench.faults.stage import Stage
from bench.faults.wire import NoAnswer, Wire

IMPATIENT = Pace(patience=1.5)


async def holder_stalls(stage: Stage, account: Account) -> None:
    """SIGSTOP at random times, leases of two seconds."""
    redis = await stage.redis()
    first, second = [await stage.server(name, redis=redis) for name in ("a", "b")]
    author = await stage.author("ada", [first, second], pace=IMPATIENT)
    for number in range(stage.rounds(2)):
        await _stall(stage, first, author, others_within=20.0)
        account.settle(f"stall {number + 1}", await stage.judge(author, [second, first]))


async def holder_stalls_in_the_real_lease(stage: Stage, account: Account) -> None:
    """The same with the lease that servers have unless told otherwise: superseded after 12 s, within 20."""
    redis = await stage.redis()
    first, second = [await stage.server(name, redis=redis, lease_seconds=12) for name in ("a", "b")]
    author = await stage.author("ada", [first, second], pace=IMPATIENT)
    await _stall(stage, first, author, others_within=20.0)
    account.settle("stall", await stage.judge(author, [second, first]))


async def holder_stalls_at_places(stage: Stage, account: Account) -> None:
    """The holder stops just before a write, which then arrives when the session is somebody else's."""
    redis = await stage.redis()
    places = ["journal.before", "snapshot.written"]
    for number, place in enumerate(places[: stage.rounds(len(places))]):
        first = await stage.server(f"a{number}", redis=redis, failpoints=[f"{place}=stop@3"])
        second = await stage.server(f"b{number}", redis=redis)
        author = await stage.author("ada", [first, second], pace=IMPATIENT)

        async def wake(first: Server = first, place: str = place, author: Author = author) -> None:
            await come_true(lambda: place in first.reached, f"place {place}", 30.0)
            await _progress(author, 8, 25.0)
            first.process.wake_worker()
            await asyncio.sleep(1.0)

        await while_writing([author], wake)
        account.settle(place, await stage.judge(author, [second, first]))
        await first.end()
        await second.end()


async def late_write_refused(stage: Stage, account: Account) -> None:
    """The holder stops before it journals an append whose client has given up, and wakes when others have written on.

    Nobody sends that append meanwhile, so no operation id stands in its way, only the fence. Under a new lease the server may
    take it in behind all the rest; sent again in the end, it must be there once.
    """
    redis = await stage.redis()
    first = await stage.server("a", redis=redis, failpoints=["journal.before=stop@3"])
    second = await stage.server("b", redis=redis)
    author = await stage.author("ada", [first, second], pace=IMPATIENT)
    for number in range(2):
        await author.append(number)
    async with Wire(first, patience=1.5) as wire:
        with suppress(NoAnswer):
            await send_text(wire, author.session_id, "Too late.\n", "given-up")
    account.check("halted", "journal.before" in first.reached, "the holder was not halted before its write")
    for number in range(2, 8):
        await author.append(number)
    first.process.wake_worker()
    await asyncio.sleep(1.5)
    await author.send("given-up", "Too late.\n", "memory")
    account.settle("refused", await stage.judge(author, [second, first]))


async def _stall(stage: Stage, holder: Server, author: Author, *, others_within: float) -> None:
    async def halt() -> None:
        await asyncio.sleep(stage.choose.uniform(0.3, 1.0))
        holder.process.halt_worker()
        try:
            # A few that may have been under way, then some that only the other server can have taken.
            await _progress(author, 8, others_within)
        finally:
            holder.process.wake_worker()
        await asyncio.sleep(1.0)

    await while_writing([author], halt)


async def _progress(author: Author, operations: int, seconds: float) -> None:
    known = len(author.ledger.entries)
    await come_true(
        lambda: len(author.ledger.entries) >= known + operations, "another server takes the session over", seconds
    )
