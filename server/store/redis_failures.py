"""What went wrong between us and Redis, said so that somebody can act on it."""

from __future__ import annotations

import re

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,
    TryAgainError,
)

from server.errors import StoreUnavailable

FAILURES = (RedisError, RedisClusterException, OSError)
"""Redis's and the network's, as opposed to mistakes of ours. `TimeoutError` of asyncio is among them."""

_UNREACHABLE = "Redis cannot be reached; check that it runs and that PALIMPSEST_STORE names it. Try again."
_SLOW = "Redis did not answer in time; it may be down or overloaded. Try again."
_MEMORY = "Redis is out of memory; raise its maxmemory or delete sessions. Nothing was written."
_REPLICA = "This Redis is a replica, or has become one; let PALIMPSEST_STORE name the primary."
_LOADING = "Redis is still loading its data. Try again in a moment."
_PRIMARY = "The Redis primary is down; wait for the failover, or start it."
_CREDENTIALS = "Redis refused the user or password; check PALIMPSEST_REDIS_USERNAME and PALIMPSEST_REDIS_PASSWORD."
_PERMISSION = "Redis's ACL forbids a command or key that is needed; docs/redis.md lists them all."
_CLUSTER = "The Redis cluster is not whole; check its nodes with CLUSTER INFO. Try again."
_REFUSED = "Redis refused a command; the server's log has its answer."

_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (OutOfMemoryError, _MEMORY),
    (ReadOnlyError, _REPLICA),
    (BusyLoadingError, _LOADING),
    (MasterDownError, _PRIMARY),
    (ClusterDownError, _CLUSTER),
    (TryAgainError, _CLUSTER),
    (RedisClusterException, _CLUSTER),
    (AuthenticationError, _CREDENTIALS),
    (NoPermissionError, _PERMISSION),
    (ConnectionError, _UNREACHABLE),
    (TimeoutError, _SLOW),
    (OSError, _SLOW),
)

_CODES = {
    "OOM": _MEMORY,
    "READONLY": _REPLICA,
    "LOADING": _LOADING,
    "MASTERDOWN": _PRIMARY,
    "CLUSTERDOWN": _CLUSTER,
    "NOPERM": _PERMISSION,
    "MISCONF": "Redis cannot persist and takes no writes; look at its log and its disk.",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write; bring them back. Nothing was written.",
    "BUSY": "A script of somebody else keeps Redis busy; find and end it with SCRIPT KILL. Try again.",
}
# Servers before 7 put a text of their own before the code of an error inside a script.
_CODE = re.compile(r"(?:^|-)([A-Z]+) ")
_NO_PERMISSION = re.compile(r"ACL|user executing the script can't", re.IGNORECASE)


def unavailable(error: Exception) -> StoreUnavailable:
    """What to tell of one of `FAILURES`, or of somebody who told already."""
    if isinstance(error, StoreUnavailable):
        return error
    told = StoreUnavailable(_text(error))
    told.__cause__ = error
    return told


def is_silence(error: Exception) -> bool:
    """Whether Redis did not answer at all, as opposed to answering with a refusal."""
    refusals = (AuthenticationError, BusyLoadingError, MaxConnectionsError)
    return isinstance(error, (ConnectionError, TimeoutError, OSError, RedisClusterException)) and not isinstance(
        error, refusals
    )


def _text(error: Exception) -> str:
    for kind, text in _CLASSES:
        if isinstance(error, kind):
            return text
    for code in _CODE.findall(str(error)):
        if code in _CODES:
            return _CODES[code]
    return _PERMISSION if _NO_PERMISSION.search(str(error)) else _REFUSED
