"""Fail points: the worker dies, or the store seems gone, at every step of journal, snapshot and lease."""

from __future__ import annotations

from collections.abc import Sequence

from bench.faults.account import Account
from bench.faults.load import come_true, while_writing
from bench.faults.server import Server
from bench.faults.stage import Stage

LIVES: Sequence[Sequence[str]] = (
    ("journal.before=kill@6", "journal.after=kill@9", "snapshot.before=kill@2"),
    ("snapshot.written=kill@2", "snapshot.pointed=kill@2", "renew.before=kill@1"),
    ("acquire.before=kill@1", "acquire.after=kill@1", "load.before=kill@1"),
)
"""What befalls one server after the other; more at once, and the pool's pauses between two workers would grow long."""
ERRORS = (
    "acquire.before=error@1",
    "acquire.after=error@2",
    "load.before=error@2",
    "journal.before=error@7",
    "journal.after=error@12",
    "snapshot.before=error@2",
    "snapshot.written=error@2",
    "snapshot.pointed=error@2",
    "renew.before=error@2",
)
REACHED_WITHIN = 45.0


async def worker_dies_at_places(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """SIGKILL of the worker by itself, at every place."""
    redis = await stage.redis() if on_redis else None
    for number, failpoints in enumerate(LIVES[: stage.rounds(len(LIVES))]):
        server = await stage.server(f"a{number}", redis=redis, failpoints=failpoints)
        await _write_through(stage, account, server, failpoints)
        await server.end()


async def store_fails_at_places(stage: Stage, account: Account, *, on_redis: bool) -> None:
    """`StoreUnavailable` at every place: before a call that was never made, and after one that took place."""
    redis = await stage.redis() if on_redis else None
    server = await stage.server("a", redis=redis, failpoints=ERRORS)
    await _write_through(stage, account, server, ERRORS)


async def _write_through(stage: Stage, account: Account, server: Server, failpoints: Sequence[str]) -> None:
    names = [failpoint.partition("=")[0] for failpoint in failpoints]
    author = await stage.author("ada", [server])

    async def all_reached() -> None:
        await come_true(lambda: server.reached.issuperset(names), f"places {names}", REACHED_WITHIN)

    try:
        await while_writing([author], all_reached)
    except* TimeoutError:
        for name in set(names) - server.reached:
            account.check(name, False, "was never reached")
    verdict = await stage.judge(author, [server])
    for name in server.reached:
        account.check(name, verdict.clean, "see the session's verdict")
    account.settle("session", verdict)
