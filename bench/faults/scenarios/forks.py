"""The server dies while it forks: there is one child afterwards, whole, and none too many."""

from __future__ import annotations

import asyncio

from bench.faults.account import Account
from bench.faults.author import Author
from bench.faults.ledger import Ledger
from bench.faults.server import Server
from bench.faults.stage import Stage
from bench.faults.wire import NoAnswer, Wire

PLACES = ("fork.before", "fork.pinned")


async def server_dies_while_forking(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """The fork is asked for again under its operation id until it is there; then both sides go their ways."""
    server = await stage.server(
        "a", redis=await stage.redis() if on_redis else None, failpoints=[f"{place}=kill@1" for place in PLACES]
    )
    parent = await stage.author("ada", [server])
    await parent.write(10)
    child = await _fork(stage, server, parent)
    for place in PLACES:
        account.check(place, place in server.reached, "was never reached")
    await asyncio.gather(parent.write(4), child.write(4))
    account.settle("parent", await stage.judge(parent, [server]))
    account.settle("child", await stage.judge(child, [server], repeat=False))
    async with Wire(server) as wire:
        listed = (await wire.ask("GET", "/v1/sessions?limit=100")).fields["data"]
        account.check("one child", len(listed) == 2, f"there are {len(listed)} sessions")
        await wire.ask("DELETE", f"/v1/sessions/{parent.session_id}")
    await server.restart()
    account.settle("child alone", await stage.judge(child, [server], repeat=False))


async def _fork(stage: Stage, server: Server, parent: Author) -> Author:
    async with Wire(server) as wire:
        for _ in range(len(PLACES) + 1):
            try:
                answer = await wire.ask("POST", f"/v1/sessions/{parent.session_id}/fork", {}, op_id="fork")
            except NoAnswer:
                await server.restart()
            else:
                return await stage.author_of("eve", answer.fields["id"], Ledger(list(parent.ledger.entries)), [server])
    raise TimeoutError("the fork was never answered")
