"""The proxy passes on what Redis and its client say, and breaks connections exactly where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as sync_redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError

from bench.faults.commands import read_command
from bench.faults.proxy import Cut, Proxy, Where
from bench.redis_process import RedisProcess


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis"), appendfsync=None) as process:
        yield process


@pytest.fixture
async def proxy(real: RedisProcess) -> AsyncIterator[Proxy]:
    with sync_redis.Redis(port=real.port) as direct:
        direct.flushall()
    async with Proxy(real.port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Redis]:
    client = Redis.from_url(proxy.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
    yield client
    await client.aclose()


@pytest.fixture
def direct(real: RedisProcess) -> Iterator[sync_redis.Redis]:
    with sync_redis.Redis(port=real.port) as direct:
        yield direct


async def test_everything_passes_through_unchanged(client: Redis) -> None:
    content = bytes(range(256)) * 4096
    await client.set("large", content)
    assert await client.get("large") == content
    assert await client.mget([f"key-{number}" for number in range(100)]) == [None] * 100


@pytest.mark.parametrize(("where", "stored"), [("before", None), ("inside", None), ("after", b"value")])
async def test_a_cut_comes_before_amid_or_after_the_command(
    proxy: Proxy, client: Redis, direct: sync_redis.Redis, where: Where, stored: bytes | None
) -> None:
    cut = Cut(where, names=frozenset({"SET"}), skip=1)
    proxy.cut(cut)
    await client.set("first", "value")
    await client.get("first")
    assert not cut.reached.is_set()
    with pytest.raises(ConnectionError):
        await client.set("second", "value")
    assert cut.reached.is_set()
    assert direct.get("second") == stored
    # Once is enough: the next connection lives.
    await client.set("third", "value")
    assert direct.get("third") == b"value"


async def test_a_delay_holds_commands_back(proxy: Proxy, client: Redis) -> None:
    proxy.delay(0.2)
    began = asyncio.get_running_loop().time()
    await client.set("a", "b")
    assert asyncio.get_running_loop().time() - began >= 0.2
    proxy.delay(2.0)
    with pytest.raises(TimeoutError):
        await client.get("a")


async def test_half_open_connections_stay_silent_and_new_ones_live_again(
    proxy: Proxy, client: Redis, direct: sync_redis.Redis
) -> None:
    await client.set("before", "1")
    proxy.swallow()
    with pytest.raises(TimeoutError):
        await client.set("swallowed", "1")
    with pytest.raises(TimeoutError):
        await client.set("swallowed on a new connection", "1")
    assert direct.dbsize() == 1
    proxy.relent()
    await client.set("again", "1")
    assert direct.get("again") == b"1"


async def test_a_redis_that_dies_is_seen_through_the_proxy(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, appendfsync=None) as process:
        async with Proxy(process.port) as proxy:
            client = Redis.from_url(proxy.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
            await client.ping()
            process.kill()
            for _ in range(2):
                with pytest.raises(ConnectionError):
                    await client.ping()
            process.start()
            assert await client.ping()
            proxy.reset_all()
            with pytest.raises(ConnectionError):
                await client.ping()
            await client.aclose()


async def test_commands_are_read_one_by_one_however_they_arrive() -> None:
    reader = asyncio.StreamReader()
    first, second = b"*2\r\n$3\r\nget\r\n$4\r\n\r\n\x00*\r\n", b"*1\r\n$4\r\nPING\r\n"
    reader.feed_data((first + second)[:9])
    reader.feed_data((first + second)[9:])
    reader.feed_eof()
    commands = [await read_command(reader) for _ in range(3)]
    assert [(found.name, found.raw) for found in commands if found] == [("GET", first), ("PING", second)]
    assert commands[2] is None


@pytest.mark.parametrize("content", [b"PING\r\n", b"*1\r\n+PING\r\n", b"*-1\r\n", b"*1\r\n$99999999999\r\n"])
async def test_what_is_no_command_is_refused(content: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(content)
    reader.feed_eof()
    with pytest.raises(ValueError, match="not a command"):
        await read_command(reader)
