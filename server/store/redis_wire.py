"""Commands on a bounded number of connections: to one Redis, to whichever Sentinels call the primary, or to a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from server.errors import StoreUnavailable
from server.store.redis_failures import FAILURES
from server.store.redis_gate import Gate
from server.store.redis_options import Address, RedisOptions

Argument = str | bytes | int | float
Command = Sequence[Argument]

_SCRIPTS = ("EVALSHA", "EVAL")
_READ_BYTES = 1 << 16
_BLOB_READ_BYTES = 1 << 20
_SHARE = 0.7
"""How much of the time for an answer one connection may take of it: the library must notice before its caller gives up, or it
would never look for the node that has taken over."""
_CLUSTER_SHARE = 0.45
"""On a cluster a call may first have to ask a silent node who has which slots, and then another."""


class Wire(Protocol):
    """Where commands go. A call that is cancelled, or runs out of time, takes its connection with it: no reply is left over.

    All methods may raise `StoreUnavailable` without asking, and one of `FAILURES` when asking fails.
    """

    async def command(self, *command: Argument) -> Any:
        """The answer. Second is a key, or, for a script, fourth."""

    async def pipeline(self, commands: Sequence[Command]) -> Sequence[Any]:
        """Send scripts, then read all answers. One outcome a script: its answer, or the error in its place."""

    async def everywhere(self, *command: Argument) -> Sequence[Any]:
        """The answers of every primary."""

    async def close(self) -> None:
        """Close all connections."""


class ServerWire:
    """To one server at a time. `guides` are the clients of those who say which one it is."""

    def __init__(self, client: Any, connections: int, guides: Sequence[Any] = ()) -> None:
        self._client, self._guides = client, guides
        self._gate = Gate(connections)

    async def command(self, *command: Argument) -> Any:
        """See `Wire.command`."""
        async with self._gate.passing():
            return await self._client.execute_command(*command)

    async def pipeline(self, commands: Sequence[Command]) -> Sequence[Any]:
        """See `Wire.pipeline`. Answers that came before the connection was lost count."""
        outcomes: list[Any] = []
        try:
            async with self._gate.passing():
                await self._exchange(commands, outcomes)
        except FAILURES as error:
            return outcomes + [error] * (len(commands) - len(outcomes))
        return outcomes

    async def everywhere(self, *command: Argument) -> Sequence[Any]:
        """See `Wire.everywhere`."""
        return [await self.command(*command)]

    async def close(self) -> None:
        """See `Wire.close`."""
        for client in (self._client, *self._guides):
            await client.aclose(close_connection_pool=True)

    async def _exchange(self, commands: Sequence[Command], outcomes: list[Any]) -> None:
        """Fill `outcomes` for as long as answers come."""
        pool = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            while len(outcomes) < len(commands):
                try:
                    outcomes.append(await connection.read_response())
                except redis.ResponseError as refusal:
                    self._gate.note(refusal)
                    outcomes.append(refusal)
        except BaseException:
            await connection.disconnect(nowait=True)  # an answer may be on its way
            raise
        finally:
            await pool.release(connection)


class ClusterWire:
    """To every primary of a cluster. What a moved slot redirects was not carried out: it is followed, and nothing sent twice."""

    def __init__(self, client: Any, connections: int) -> None:
        self._client, self._connections = client, connections
        # One node that is silent holds up nobody who asks the others.
        self._gates: dict[str, Gate] = {}

    async def command(self, *command: Argument) -> Any:
        """See `Wire.command`."""
        key = command[3] if command[0] in _SCRIPTS else command[1]
        await self._learn_nodes()
        async with self._gate(self._client.get_node_from_key(key)).passing():
            return await self._client.execute_command(*command)

    async def pipeline(self, commands: Sequence[Command]) -> Sequence[Any]:
        """See `Wire.pipeline`. In order for each key; keys side by side."""
        outcomes: list[Any] = [None] * len(commands)
        places: dict[Argument, list[int]] = {}
        for place, command in enumerate(commands):
            places.setdefault(command[3], []).append(place)

        async def one_key(of_key: Sequence[int]) -> None:
            for place in of_key:
                try:
                    outcomes[place] = await self.command(*commands[place])
                except (*FAILURES, StoreUnavailable) as error:
                    outcomes[place] = error

        async with asyncio.TaskGroup() as group:
            for of_key in places.values():
                group.create_task(one_key(of_key))
        return outcomes

    async def everywhere(self, *command: Argument) -> Sequence[Any]:
        """See `Wire.everywhere`."""
        await self._learn_nodes()
        answers = []
        for node in self._client.get_primaries():
            async with self._gate(node).passing():
                answers.append(await self._client.execute_command(*command, target_nodes=node))
        return answers

    async def close(self) -> None:
        """See `Wire.close`."""
        await self._client.aclose()

    async def _learn_nodes(self) -> None:
        if not self._client.get_nodes():
            async with self._gate(None).passing():
                await self._client.initialize()

    def _gate(self, node: Any) -> Gate:
        """The one of a node; None is for a slot that nobody is known to have."""
        name = "" if node is None else node.name
        if name not in self._gates:
            self._gates[name] = Gate(self._connections)
        return self._gates[name]


def control_wire(options: RedisOptions) -> Wire:
    """For commands without a snapshot."""
    return _wire(options, options.connections, options.timeout_seconds, _READ_BYTES)


def blob_wire(options: RedisOptions) -> Wire:
    """For snapshots."""
    return _wire(options, options.blob_connections, options.blob_timeout_seconds, _BLOB_READ_BYTES)


def waiting_wire(options: RedisOptions) -> Wire:
    """For commands that wait for something to happen; how long is their caller's business."""
    return _wire(options, options.connections, None, _READ_BYTES)


def _wire(options: RedisOptions, connections: int, timeout: float | None, read_bytes: int) -> Wire:
    address = options.address
    share = _CLUSTER_SHARE if address.kind == "cluster" else _SHARE
    common: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "socket_timeout": None if timeout is None else share * timeout,
        "socket_connect_timeout": share * (timeout or options.timeout_seconds),
        "socket_read_size": read_bytes,
        "socket_keepalive": True,
        # Whether something may be sent twice is decided above: never for a write.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **_tls(options, address),
    }
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.nodes]
        # The gates bound connections. The library refuses to open more than this, and must never come to that: a moved slot sends
        # calls through the gate of one node to another, and looking for nodes and closing connections takes some besides.
        most = 4 * connections + 16
        cluster: Any = RedisCluster(startup_nodes=nodes, require_full_coverage=False, max_connections=most, **common)
        return ClusterWire(cluster, connections)
    common["db"] = address.database
    if address.kind == "sentinel":
        sentinel = _sentinel(options, address)
        return ServerWire(sentinel.master_for(address.service, **common), connections, sentinel.sentinels)
    [(host, port)] = address.nodes
    return ServerWire(redis.Redis(host=host, port=port, max_connections=connections, **common), connections)


def _sentinel(options: RedisOptions, address: Address) -> Any:
    own = {
        "username": options.sentinel_username,
        "password": options.sentinel_password,
        "socket_timeout": _SHARE * options.timeout_seconds / 2,
        "socket_connect_timeout": _SHARE * options.timeout_seconds / 2,
        "retry": Retry(NoBackoff(), 0),  # the next Sentinel is asked instead
        "protocol": 2,
        **_tls(options, address),
    }
    sentinels: Any = Sentinel
    return sentinels(list(address.nodes), sentinel_kwargs=own)


def _tls(options: RedisOptions, address: Address) -> Mapping[str, Any]:
    if not address.tls:
        return {}
    paths = {"ssl_ca_certs": options.tls_ca, "ssl_certfile": options.tls_cert, "ssl_keyfile": options.tls_key}
    return {"ssl": True, **{name: str(path) for name, path in paths.items() if path is not None}}
