"""Whether a Redis may be trusted with sessions, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import ResponseError

from server.errors import StoreUnavailable
from server.store.base import Durability
from server.store.redis_wire import Wire

_OLDEST = (6, 2)


class UnfitRedis(StoreUnavailable):
    """This Redis would lose sessions, or cannot do what is asked of it: a matter of its settings, not of time."""


async def examine(wire: Wire) -> Durability:
    """What the weakest of the primaries promises. Raises `UnfitRedis`, or `StoreUnavailable` for one that is not ready yet."""
    for memory in await wire.everywhere("INFO", "memory"):
        _check_policy(memory)
    for server in await wire.everywhere("INFO", "server"):
        _check_version(server)
    for replication in await wire.everywhere("INFO", "replication"):
        if replication.get("role") not in ("master", None):
            raise StoreUnavailable("This Redis is a replica; let PALIMPSEST_STORE name the primary, or use Sentinel.")
    persistence = await wire.everywhere("INFO", "persistence")
    if any(int(one.get("loading", 0)) for one in persistence):
        raise StoreUnavailable("Redis is still loading its data. Try again in a moment.")
    durability = await _durability(wire, persistence)
    if durability != "fsync":
        structlog.get_logger("server.store").warning(
            "redis does not keep every write", durability=durability, fix="appendonly yes and appendfsync always"
        )
    return durability


def _check_policy(memory: Mapping[str, Any]) -> None:
    policy = memory.get("maxmemory_policy")
    if policy != "noeviction":
        raise UnfitRedis(
            f"Redis has maxmemory-policy {policy}: when it is full it would throw sessions away. "
            "Set maxmemory-policy noeviction in its configuration."
        )


def _check_version(server: Mapping[str, Any]) -> None:
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise UnfitRedis(f"Redis {version} is too old; use 6.2 or newer, or Valkey.")


async def _durability(wire: Wire, persistence: Sequence[Mapping[str, Any]]) -> Durability:
    if not all(int(one.get("aof_enabled", 0)) for one in persistence):
        return "memory"
    try:
        settings = await wire.everywhere("CONFIG GET", "appendfsync")
    except ResponseError:  # hosted ones forbid the question; then the lesser promise is the safe guess
        return "one_second"
    policies = {_policy(setting) for setting in settings}
    if policies == {"always"}:
        return "fsync"
    return "memory" if "no" in policies else "one_second"


def _policy(setting: Any) -> str:
    """The value in the answer of CONFIG GET, a pair or a map, as text or bytes."""
    pairs = setting.items() if isinstance(setting, Mapping) else [setting[:2]]
    [(_, value)] = pairs
    return value.decode() if isinstance(value, bytes) else str(value)
