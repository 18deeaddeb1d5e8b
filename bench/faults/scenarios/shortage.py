"""No room left: in Redis's memory, on the disk of the embedded store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis.asyncio import Redis

from bench.faults.account import Account
from bench.faults.author import Author
from bench.faults.load import while_writing
from bench.faults.server import Server
from bench.faults.stage import Stage
from bench.faults.wire import Wire

SPARE_BYTES = 20_000
REFUSED_WITHIN = 20.0
DISK = "8m"
PRIVATE_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
"""A name space in which anybody may mount; the disk goes with the last process in it."""


async def redis_out_of_memory(stage: Stage, account: Account) -> None:
    """Writes are refused with 503, reads are answered; with more memory all goes on, without a restart."""
    redis = await stage.redis()
    server = await stage.server("a", redis=redis)
    author = await stage.author("ada", [server])
    await author.write(8)
    async with Redis.from_url(redis.url) as direct:

        async def shortage() -> None:
            used = (await direct.info("memory"))["used_memory"]
            await direct.config_set("maxmemory", used + SPARE_BYTES)
            try:
                await _refused(author, server)
                # At the very edge now and then a small write still has room.
                await direct.config_set("maxmemory", used // 2)
                await _check_readers(author, server, account)
            finally:
                await direct.config_set("maxmemory", 0)
            await asyncio.sleep(0.5)

        for _ in range(stage.rounds(2)):
            await while_writing([author], shortage)
            account.settle("out of memory", await stage.judge(author, [server]))


async def disk_full(stage: Stage, account: Account) -> None:
    """Writes are refused with 503, reads are answered; with room on the disk all goes on, without a restart."""
    folder = stage.folder / "disk"
    folder.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={DISK},mode=0700 tmpfs "$0" && exec "$@"'
    server = await stage.server("a", data_dir=folder, within=(*PRIVATE_DISK, mount, str(folder)))
    # The disk is seen by the server's processes alone, and through them.
    disk = Path(f"/proc/{server.process.pid}/root{folder}")
    author = await stage.author("ada", [server])
    await author.write(8)

    async def shortage() -> None:
        with _filled(disk):
            await _refused(author, server)
            await _check_readers(author, server, account)
        await asyncio.sleep(0.5)

    for _ in range(stage.rounds(2)):
        await while_writing([author], shortage)
        account.settle("disk full", await stage.judge(author, [server]))


async def _refused(author: Author, server: Server) -> None:
    """Return when a write has been refused for want of room; reads are answered all the time."""
    known = len(author.refusals)
    async with asyncio.timeout(REFUSED_WITHIN), Wire(server) as wire:
        while not any(refusal.code == "store_unavailable" for refusal in author.refusals[known:]):
            await wire.session(author.session_id)
            await asyncio.sleep(0.05)


async def _check_readers(author: Author, server: Server, account: Account) -> None:
    silent = [refusal for refusal in author.refusals if refusal.retry_after is None]
    account.check("Retry-After", not silent, f"no Retry-After came with {silent[-1:]}")
    acknowledged = author.ledger.position
    async with Wire(server) as wire:
        position = (await wire.session(author.session_id)).fields["position"]
    account.check("read while full", position >= acknowledged, f"{position} was read, {acknowledged} acknowledged")
    account.check("readyz while full", await server.readiness() == 503, "ready, although nothing can be written")


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(1 << 12))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()
