"""Every fault there is, in the order in which they are played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from bench.faults.account import Account
from bench.faults.scenarios import (
    clocks,
    cuts,
    damage,
    fights,
    forks,
    kills,
    lost_tail,
    places,
    shortage,
    stalls,
    unreachable,
)
from bench.faults.stage import Stage

Play = Callable[[Stage, Account], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One fault. `seconds` is how long it may take at most; `quick` ones are played by `--quick`, too; one that measures how
    fast something is answered wants to be `alone`."""

    name: str
    play: Play
    seconds: float = 90.0
    quick: bool = False
    alone: bool = False


FAULTS: tuple[Fault, ...] = (
    Fault("worker-killed-embedded", partial(kills.worker_killed, on_redis=False), quick=True),
    Fault("worker-killed-redis", partial(kills.worker_killed, on_redis=True)),
    Fault("server-killed-embedded", partial(kills.server_killed, on_redis=False)),
    Fault("server-killed-redis", partial(kills.server_killed, on_redis=True), quick=True),
    Fault("worker-killed-at-places-embedded", partial(places.worker_dies_at_places, on_redis=False), 240.0),
    Fault("worker-killed-at-places-redis", partial(places.worker_dies_at_places, on_redis=True), 240.0),
    Fault("store-fails-at-places-embedded", partial(places.store_fails_at_places, on_redis=False)),
    Fault("store-fails-at-places-redis", partial(places.store_fails_at_places, on_redis=True)),
    Fault("server-killed-while-forking-embedded", partial(forks.server_dies_while_forking, on_redis=False)),
    Fault("server-killed-while-forking-redis", partial(forks.server_dies_while_forking, on_redis=True)),
    Fault("redis-killed-always", kills.redis_killed, quick=True),
    Fault("redis-lost-tail-everysec", lost_tail.tail_lost, quick=True),
    Fault("redis-out-of-memory", shortage.redis_out_of_memory),
    Fault("redis-halted", unreachable.redis_halted, quick=True, alone=True),
    Fault("redis-gone", unreachable.redis_gone, alone=True),
    Fault("redis-late", unreachable.redis_late),
    Fault("connection-cut-before", partial(cuts.connection_cut, where="before")),
    Fault("connection-cut-inside", partial(cuts.connection_cut, where="inside")),
    Fault("connection-cut-after", partial(cuts.connection_cut, where="after"), quick=True),
    Fault("connection-reset-all", cuts.all_connections_reset),
    Fault("connection-slow", cuts.connection_slow),
    Fault("connection-half-open", cuts.connection_half_open),
    Fault("holder-stalled", stalls.holder_stalls),
    Fault("holder-stalled-12s", stalls.holder_stalls_in_the_real_lease, alone=True),
    Fault("holder-stalled-at-places", stalls.holder_stalls_at_places, 150.0),
    Fault("late-write-refused", stalls.late_write_refused, quick=True),
    Fault("hand-over-fails", fights.hand_over_fails),
    Fault("servers-replaced-in-turn", fights.servers_replaced_in_turn),
    Fault("two-servers-fight", fights.two_servers_fight, 150.0, quick=True),
    Fault("disk-full-embedded", shortage.disk_full),
    Fault("snapshot-damaged-embedded", damage.snapshot_damaged, quick=True),
    Fault("snapshot-damaged-redis", damage.snapshot_damaged_in_redis, 150.0),
    Fault("clock-jumps-embedded", partial(clocks.clock_jumps, on_redis=False)),
    Fault("clock-jumps-redis", partial(clocks.clock_jumps, on_redis=True)),
)


def chosen(only: str | None, *, quick: bool) -> list[Fault]:
    """Those whose name contains `only`, or those that `--quick` plays, or all. Raises `ValueError` if there are none."""
    found = [fault for fault in FAULTS if (only in fault.name if only else fault.quick or not quick)]
    if not found:
        raise ValueError(f"no fault is named like {only!r}; there are: {', '.join(fault.name for fault in FAULTS)}")
    return found
