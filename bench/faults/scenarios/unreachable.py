"""Redis cannot be reached: halted, gone, or not there yet when the server starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.faults.account import Account
from bench.faults.author import Author
from bench.faults.load import while_writing
from bench.faults.server import Server
from bench.faults.stage import Stage
from bench.faults.wire import Answer, NoAnswer, Refused, Wire

WITHIN = 1.0
"""Seconds within which everybody learns that the store is out of reach."""
AT_ONCE = 8
"""Requests of each kind at the same time."""
BACK_WITHIN = 15.0


async def redis_halted(stage: Stage, account: Account) -> None:
    """SIGSTOP: connections stay open and nothing is answered. Then SIGCONT."""
    redis = await stage.redis()
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])
    await author.write(8)
    for number in range(stage.rounds(2)):
        redis.suspend()
        try:
            await _refuses_quickly(server, author, account, f"halted {number + 1}")
        finally:
            redis.resume()
        await _comes_back(server, author, account)
        account.settle("afterwards", await stage.judge(author, [server]))


async def redis_gone(stage: Stage, account: Account) -> None:
    """Nobody listens. Then it is started again."""
    redis = await stage.redis()
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])
    await author.write(8)
    await asyncio.to_thread(redis.kill)
    await _refuses_quickly(server, author, account, "gone")
    await asyncio.to_thread(redis.start)
    await _comes_back(server, author, account)
    account.settle("afterwards", await stage.judge(author, [server]))


async def redis_late(stage: Stage, account: Account) -> None:
    """The server is started first, is not ready, and becomes so without being started again."""
    redis = await stage.redis()
    await asyncio.to_thread(redis.kill)
    server = await stage.server("a", redis=redis, start=False)
    await server.launch()
    account.check("readyz without Redis", await server.readiness() == 503, "ready without a store")
    await asyncio.to_thread(redis.start)
    await server.wait_ready()
    author = await stage.author("ada", [server])
    await author.write(6)
    account.settle("afterwards", await stage.judge(author, [server]))


async def _refuses_quickly(server: Server, author: Author, account: Account, point: str) -> None:
    path = f"/v1/sessions/{author.session_id}"
    async with Wire(server) as wire:
        calls: dict[str, Callable[[], Awaitable[Answer]]] = {
            "read": lambda: wire.session(author.session_id),
            "list": lambda: wire.ask("GET", "/v1/sessions"),
            "create": lambda: wire.ask("POST", "/v1/sessions", {}),
            "append": lambda: wire.ask("POST", f"{path}/segments", {"text": "Never.\n"}, op_id="never"),
            "generate": lambda: wire.ask("POST", f"{path}/generate", {"max_tokens": 2, "remember": False}),
            "ready": lambda: wire.ask("GET", "/readyz"),
        }
        for name, call in calls.items():
            found = await asyncio.gather(*(_refusal(call) for _ in range(AT_ONCE)))
            complaints = [complaint for complaint in found if complaint]
            account.check(f"{point}: {name}", not complaints, "; ".join(sorted(set(complaints))))


async def _refusal(call: Callable[[], Awaitable[Answer]]) -> str:
    """What is wrong with how the call was refused; empty if nothing is."""
    began = time.monotonic()
    try:
        await call()
    except Refused as refusal:
        took = time.monotonic() - began
        if refusal.status != 503 or refusal.retry_after is None:
            return f"{refusal}, Retry-After {refusal.retry_after}"
        return f"took {took:.2f} s" if took > WITHIN else ""
    except NoAnswer as silence:
        return str(silence)
    return "was answered"


async def _comes_back(server: Server, author: Author, account: Account) -> None:
    began = time.monotonic()
    await while_writing([author], server.wait_ready)
    took = time.monotonic() - began
    account.check("readyz afterwards", took <= BACK_WITHIN, f"not ready within {BACK_WITHIN:g} s, but after {took:.1f}")
