"""A real Redis in a process of its own, on a free port: started and waited for, killed without warning, or stopped in order."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import redis

_POLL_SECONDS = 0.02
_START_SECONDS = 15.0
_STOP_SECONDS = 15.0
_SLOTS = 16_384
_PORTS = range(20_000, 32_000)
"""Below the ports that the kernel gives to clients, so that none of them takes ours between a kill and a restart."""


class RedisFailedError(RuntimeError):
    """Redis did not do what a Redis does; the text says what to look at."""


class RedisProcess:
    """One Redis at a time, always on the same port with the same data.

    `folder` gets its files and its log. `appendfsync` of the append-only file is "always", "everysec" or "no", or None for a
    Redis that keeps nothing. `maxmemory` is in bytes; `extra` are further options, such as `("--requirepass", "secret")`. As a
    context manager it starts on entry, and is killed on exit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        appendfsync: Literal["always", "everysec", "no"] | None = "always",
        maxmemory: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self._folder, self._appendfsync, self._maxmemory, self._extra = folder, appendfsync, maxmemory, tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the Redis that runs. Raises `RedisFailedError` when none does."""
        if self._process is None:
            raise RedisFailedError("no Redis runs; start it first")
        return self._process.pid

    @property
    def log(self) -> Path:
        """Where the output of all its lives is."""
        return self._folder / "redis.log"

    def option(self, name: str) -> str:
        """The value of one of the `extra` options."""
        return self._extra[self._extra.index(name) + 1]

    def start(self) -> None:
        """Start, and wait until its data is loaded. Raises `RedisFailedError`."""
        if self._process is not None:
            raise RedisFailedError("this Redis runs already; stop or kill it first")
        program = _program()
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *self._arguments()],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the caller, who then ends this
            )
        try:
            _wait(self._answers, f"Redis did not start; its log is {self.log}")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, also to one that is stopped. Does nothing when none runs."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: Redis writes out what it has. Killed when that takes too long."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill, and start again on the same port with the data that was on disk."""
        self.kill()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _arguments(self) -> list[str]:
        persistence = ["--appendonly", "no"]
        if self._appendfsync is not None:
            persistence = ["--appendonly", "yes", "--appendfsync", self._appendfsync]
        memory = [] if self._maxmemory is None else ["--maxmemory", str(self._maxmemory)]
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        return [*options, *persistence, *memory, "--maxmemory-policy", "noeviction", *self._extra]

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RedisFailedError(f"Redis ended at its start; its log is {self.log}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._listening), timeout=1.0) as plain:
            return self._loaded(plain)
        return False

    @property
    def _listening(self) -> int:
        return int(self.option("--tls-port")) if "--tls-port" in self._extra else self.port

    def _loaded(self, connection: socket.socket) -> bool:
        """Whether PING is answered, if only with a demand for a password. TLS ports answer nothing to plain text."""
        if "--tls-port" in self._extra:
            return True
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RedisFailedError("no Redis runs; start it first")
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


class RedisClusterProcesses:
    """A Redis Cluster of `masters` without replicas on this machine. `url` names all of them."""

    def __init__(self, folder: Path, masters: int = 3, *, extra: Sequence[str] = ()) -> None:
        self.nodes = tuple(self._node(folder / f"node{number}", extra) for number in range(masters))

    @property
    def url(self) -> str:
        """`redis+cluster://127.0.0.1:<port>,…`."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start all, join them, share out the slots, and wait until every one of them finds the cluster whole."""
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to all."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @staticmethod
    def _node(folder: Path, extra: Sequence[str]) -> RedisProcess:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3000", "--cluster-port", str(free_port()))
        return RedisProcess(folder, appendfsync="everysec", extra=(*options, *extra))

    def _join(self) -> None:
        clients = [_client(node.port) for node in self.nodes]
        try:
            share = -(-_SLOTS // len(clients))
            for number, client in enumerate(clients):
                slots = range(number * share, min((number + 1) * share, _SLOTS))
                client.execute_command("CLUSTER ADDSLOTSRANGE", slots[0], slots[-1])
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            for node in self.nodes[1:]:
                clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.option("--cluster-port"))
            _wait(lambda: all(_whole(client, len(clients)) for client in clients), "the cluster did not come together")
        finally:
            for client in clients:
                client.close()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    while True:
        # Not from `random`: test processes side by side seed it alike, and would choose the same port at the same moment.
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _client(port: int) -> Any:
    """A client whose untyped methods may be called."""
    return redis.Redis(port=port)


def _whole(client: Any, nodes: int) -> bool:
    info: dict[str, str] = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes


def _program() -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise RedisFailedError("redis-server is missing; install it (on Debian: apt-get install redis-server)")


def _wait(ready: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise RedisFailedError(failure)
        time.sleep(_POLL_SECONDS)
