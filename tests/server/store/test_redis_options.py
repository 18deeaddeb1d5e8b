"""Addresses of Redis, and what is said when it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import exceptions

from server.errors import StoreUnavailable
from server.settings import InvalidSettingsError, load
from server.store.factory import create_store
from server.store.redis import RedisOptions, RedisStore
from server.store.redis_failures import is_silence, unavailable
from server.store.redis_options import Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", Address("single", False, (("host", 6379),), "", 0, None, None)),
        ("rediss://u%40:p%2F@host:1/3", Address("single", True, (("host", 1),), "", 3, "u@", "p/")),
        ("redis://:secret@[::1]:7/", Address("single", False, (("::1", 7),), "", 0, None, "secret")),
        (
            "redis+sentinel://a,b:2/main/4",
            Address("sentinel", False, (("a", 26379), ("b", 2)), "main", 4, None, None),
        ),
        ("rediss+cluster://a:1,b", Address("cluster", True, (("a", 1), ("b", 6379)), "", 0, None, None)),
    ],
)
def test_addresses(url: str, expected: Address) -> None:
    assert Address.of(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "redis+other://host",
        "redis://",
        "redis://a,b",
        "redis://host:port",
        "redis://host:99999",
        "redis://host/x",
        "redis://host/0/1",
        "redis+sentinel://host",
        "redis+cluster://host/1",
    ],
)
def test_what_names_no_redis_is_refused_with_the_settings_name(url: str) -> None:
    with pytest.raises(InvalidSettingsError, match="PALIMPSEST_STORE"):
        Address.of(url)


def test_settings_go_before_the_url(tmp_path: Path) -> None:
    settings = load(
        store="redis://old:word@host",
        redis_username="new",
        redis_password="secret",
        redis_tls_ca=tmp_path,
        redis_prefix="p",
        redis_timeout_seconds=0.5,
    )
    options = RedisOptions.of(settings)
    assert (options.address.username, options.address.password) == ("new", "secret")
    assert (options.tls_ca, options.prefix, options.timeout_seconds) == (tmp_path, "p", 0.5)
    assert isinstance(create_store(settings), RedisStore)


def test_the_factory_refuses_an_address_before_anything_is_opened() -> None:
    with pytest.raises(InvalidSettingsError, match="service"):
        create_store(load(store="redis+sentinel://host"))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (exceptions.OutOfMemoryError("command not allowed"), "maxmemory"),
        (exceptions.ResponseError("OOM command not allowed. script: ab, on @user_script:1."), "maxmemory"),
        (exceptions.ResponseError("Error running script (call to f_ab): @user_script:1: -OOM command"), "maxmemory"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "replica"),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "persist"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), "replicas"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
        (exceptions.ClusterDownError("The cluster is down"), "cluster"),
        (exceptions.RedisClusterException("no node answers"), "cluster"),
        (exceptions.AuthenticationError("invalid username-password pair"), "PALIMPSEST_REDIS_PASSWORD"),
        (exceptions.NoPermissionError("this user has no permissions"), "ACL"),
        (
            exceptions.ResponseError("The user executing the script can't run this command or subcommand script: a"),
            "ACL",
        ),
        (exceptions.ResponseError("The user executing the script can't access at least one of the keys"), "ACL"),
        (exceptions.ConnectionError("refused"), "reached"),
        (exceptions.TimeoutError("slow"), "in time"),
        (TimeoutError(), "in time"),
        (exceptions.ResponseError("ERR something else"), "log"),
    ],
)
def test_every_failure_says_what_to_do(error: Exception, hint: str) -> None:
    told = unavailable(error)
    assert isinstance(told, StoreUnavailable)
    assert hint in told.message


def test_a_refusal_is_no_silence() -> None:
    for answered in (
        exceptions.OutOfMemoryError("full"),
        exceptions.AuthenticationError("no"),
        exceptions.BusyLoadingError(),
    ):
        assert not is_silence(answered)
    for silent in (exceptions.ConnectionError("cut"), exceptions.TimeoutError("slow"), TimeoutError()):
        assert is_silence(silent)
