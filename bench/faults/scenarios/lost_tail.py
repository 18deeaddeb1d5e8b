"""Redis with `appendfsync everysec` loses what it had not yet written to the disk: the most the table allows, and no secret."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.faults.account import Account
from bench.faults.author import Author
from bench.faults.ledger import Appended
from bench.faults.stage import Stage
from bench.faults.wire import Answer, Refused, Wire
from bench.redis_process import RedisProcess

BEFORE, BEHIND = 10, 8
"""Appends that are on the disk, and those of which some were not."""
_FIRST_BYTES = 60


async def tail_lost(stage: Stage, account: Account) -> None:
    """The newest appends are cut off the append-only file; once the server lives on, once it starts anew."""
    redis = await stage.redis(appendfsync="everysec")
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])
    for number, restarted in enumerate([False, True][: stage.rounds(2)]):
        point = "server restarted" if restarted else "server lives on"
        first = number * (BEFORE + BEHIND)
        for offset in range(BEFORE):
            await author.append(first + offset)
        safe = author.ledger.position
        sizes = [await _settled_size(redis)]
        for offset in range(BEFORE, BEFORE + BEHIND):
            newest = await author.append(first + offset)
            sizes.append(_file(redis).stat().st_size)
        # Within the first bytes of one of the appends: what a server writes besides, such as a renewed lease, may end its share.
        kept = stage.choose.randrange(BEHIND)
        await _lose(redis, min(sizes[kept] + stage.choose.randrange(_FIRST_BYTES), sizes[kept + 1] - 1))
        if restarted:
            await server.restart()
        await _find_out(author, account, point, safe, newest)
        account.settle(point, await stage.judge(author, [server]))


async def _find_out(author: Author, account: Account, point: str, safe: int, newest: Appended) -> None:
    """The client sees from position and ETag that the end of its text is gone, is refused when it insists on the ETag that it
    knows, and sends again what was lost."""
    found = await author.insist(lambda wire: wire.session(author.session_id), "reading the session")
    position = found.fields["position"]
    boundaries = {entry.position for entry in author.ledger.entries}
    account.check(f"{point}: a prefix of what was acknowledged", position in boundaries, f"{position} is in the middle")
    account.check(f"{point}: nothing older is lost", position >= safe, f"at {position}, though {safe} were on the disk")
    account.check(f"{point}: another ETag", found.etag != newest.etag, f"still {found.etag}")
    account.check(f"{point}: 412", await _is_refused(author, newest), "a stale ETag was accepted")
    for entry in author.ledger.rewind(position):
        assert isinstance(entry, Appended)
        await author.send(entry.op_id, entry.text, entry.how)


async def _is_refused(author: Author, newest: Appended) -> bool:
    async def attempt(wire: Wire) -> Answer:
        path = f"/v1/sessions/{author.session_id}/segments"
        return await wire.ask("POST", path, {"text": "Never.\n"}, if_match=newest.etag)

    try:
        await author.insist(attempt, "appending with a stale ETag")
    except Refused as refusal:
        return refusal.status == 412
    return False


async def _settled_size(redis: RedisProcess) -> int:
    """Bytes of the append-only file, when all that was acknowledged has been in it for more than a second."""
    await asyncio.sleep(1.5)
    return _file(redis).stat().st_size


async def _lose(redis: RedisProcess, size: int) -> None:
    await asyncio.to_thread(redis.kill)
    with _file(redis).open("r+b") as file:
        file.truncate(size)
    await asyncio.to_thread(redis.start)


def _file(redis: RedisProcess) -> Path:
    (path,) = (redis.log.parent / "appendonlydir").glob("*.incr.aof")
    return path
