"""Where Redis is and how to talk to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from server.settings import InvalidSettingsError, Settings

Kind = Literal["single", "sentinel", "cluster"]

_KINDS: dict[str, Kind] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class Address:
    """A store URL taken apart."""

    kind: Kind
    tls: bool
    nodes: tuple[tuple[str, int], ...]
    """Host and port of the server, of every Sentinel, or of some of the cluster's nodes."""
    service: str
    database: int
    username: str | None
    password: str | None

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises `InvalidSettingsError` for a URL that names no Redis."""
        parts = urlsplit(url)
        scheme, _, kind_name = parts.scheme.partition("+")
        if scheme not in ("redis", "rediss") or kind_name not in _KINDS:
            raise _invalid("it must begin with redis://, redis+sentinel:// or redis+cluster:// (rediss…:// for TLS)")
        kind = _KINDS[kind_name]
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        nodes = tuple(_node(host, _PORTS[kind]) for host in hosts.split(","))
        path = [part for part in parts.path.split("/") if part]
        service = ""
        if kind == "sentinel":
            if not path:
                raise _invalid("redis+sentinel:// needs the name of the service: redis+sentinel://host:port/service/0")
            service = path.pop(0)
        if kind == "single" and len(nodes) > 1:
            raise _invalid("redis:// takes one server; use redis+sentinel:// or redis+cluster:// for several")
        database = path.pop(0) if path else "0"
        if path or not database.isdecimal():
            raise _invalid("behind the hosts there is only room for the number of a database")
        if kind == "cluster" and database != "0":
            raise _invalid("a cluster has only database 0")
        return cls(
            kind,
            scheme == "rediss",
            nodes,
            service,
            int(database),
            unquote(username) or None,
            unquote(password) or None,
        )


@dataclass(frozen=True)
class RedisOptions:
    """See the settings of the same names."""

    url: str
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    prefix: str = "palimpsest"
    timeout_seconds: float = 0.8
    blob_timeout_seconds: float = 10.0
    connections: int = 16
    """Most connections for commands without a snapshot; to each node, if there are several."""
    blob_connections: int = 4
    """Most connections for commands with a snapshot."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings say."""
        return cls(
            settings.store,
            username=settings.redis_username,
            password=settings.redis_password.get_secret_value() if settings.redis_password else None,
            sentinel_username=settings.redis_sentinel_username,
            sentinel_password=(
                settings.redis_sentinel_password.get_secret_value() if settings.redis_sentinel_password else None
            ),
            tls_ca=settings.redis_tls_ca,
            tls_cert=settings.redis_tls_cert,
            tls_key=settings.redis_tls_key,
            prefix=settings.redis_prefix,
            timeout_seconds=settings.redis_timeout_seconds,
            blob_timeout_seconds=settings.redis_blob_timeout_seconds,
        )

    @property
    def address(self) -> Address:
        """The URL taken apart; user and password of the settings go before those in it."""
        address = Address.of(self.url)
        return replace(address, username=self.username or address.username, password=self.password or address.password)


def _node(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _invalid(f"{text!r} is no host and port") from error
    if not host:
        raise _invalid(f"{text!r} names no host")
    return host, default_port if port is None else port


def _invalid(what: str) -> InvalidSettingsError:
    return InvalidSettingsError(f"PALIMPSEST_STORE: {what}.")
