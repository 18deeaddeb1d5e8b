"""A snapshot that is not what was written: a bit flipped, its end missing, all of it missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from redis.asyncio import Redis

from bench.faults.account import Account
from bench.faults.author import Author
from bench.faults.load import come_true
from bench.faults.server import Server
from bench.faults.stage import Stage
from bench.faults.wire import Refused, Wire

Harm = Callable[[bytes, int], bytes | None]
LEAST_SNAPSHOT = 1000
"""Bytes; whatever else is stored of a session is shorter."""


def flipped(content: bytes, place: int) -> bytes:
    """One bit is another."""
    harmed = bytearray(content)
    harmed[place] ^= 1 << (place % 8)
    return bytes(harmed)


def truncated(content: bytes, place: int) -> bytes:
    """The end is missing."""
    return content[:place]


def missing(_content: bytes, _place: int) -> None:
    """All of it is missing."""


HARMS: Mapping[str, Harm] = {"flipped": flipped, "truncated": truncated, "missing": missing}


async def snapshot_damaged(stage: Stage, account: Account) -> None:
    """Embedded: files. The server starts anew, finds out, and goes on from the generation before and a longer journal."""
    server = await stage.server("a")
    author = await stage.author("ada", [server])
    for name, harm in list(HARMS.items())[: stage.rounds(len(HARMS))]:
        await author.write(30)
        await come_true(lambda: len(_files(server)) >= 2, "two generations", 20.0)
        await server.kill()
        newest = _files(server)[-1]
        content = newest.read_bytes()
        harmed = harm(content, stage.choose.randrange(len(content)))
        newest.unlink()
        if harmed is not None:
            newest.write_bytes(harmed)
        await server.start()
        account.settle(name, await stage.judge(author, [server]))
    await _all_damaged(stage, account, server, author)


async def _all_damaged(stage: Stage, account: Account, server: Server, author: Author) -> None:
    """With no generation left the session is refused rather than made up; with the files restored it is there again."""
    await server.kill()
    kept = {path: path.read_bytes() for path in _files(server)}
    for path, content in kept.items():
        path.write_bytes(flipped(content, stage.choose.randrange(len(content))))
    await server.start()
    refused = ""
    try:
        async with Wire(server) as wire:
            await wire.ask("POST", f"/v1/sessions/{author.session_id}/generate", {"max_tokens": 1, "remember": False})
    except Refused as refusal:
        refused = refusal.code
    account.check("all generations", refused == "state_refused", f"answered with {refused or 'a text'}")
    await server.kill()
    for path, content in kept.items():
        path.write_bytes(content)
    await server.start()
    account.settle("restored", await stage.judge(author, [server]))


async def snapshot_damaged_in_redis(stage: Stage, account: Account) -> None:
    """Redis: keys. Whichever generation is the newest, each of them is harmed once."""
    redis = await stage.redis()
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])
    async with Redis.from_url(redis.url) as direct:
        for name, harm in list(HARMS.items())[: stage.rounds(len(HARMS))]:
            await author.write(30)
            await server.kill()
            snapshots = await _keys(direct, author.session_id)
            # One that was replaced just before the kill may be there still.
            account.check("two generations", len(snapshots) >= 2, f"there are {len(snapshots)}")
            for number, (key, content) in enumerate(snapshots.items()):
                harmed = harm(content, stage.choose.randrange(len(content)))
                await (direct.delete(key) if harmed is None else direct.set(key, harmed))
                await server.start()
                account.settle(f"{name} {number + 1}", await stage.judge(author, [server], repeat=False))
                await server.kill()
                await direct.set(key, content)
            await server.start()


def _files(server: Server) -> list[Path]:
    """Snapshots, newest last."""
    return sorted((server.data_dir / "snapshots").glob("*.snapshot"), key=lambda path: path.stat().st_mtime_ns)


async def _keys(direct: Redis, session_id: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    async for key in direct.scan_iter(match=f"*{session_id}*"):
        if await direct.type(key) == b"string" and await direct.strlen(key) >= LEAST_SNAPSHOT:
            content = await direct.get(key)
            assert isinstance(content, bytes)
            found[key] = content
    return found
