"""The Redis store when Redis stands still, dies, comes back, is full, or was never there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot

from bench.redis_process import RedisClusterProcesses, RedisProcess
from server.errors import StoreUnavailable
from server.store.base import SessionRecord
from server.store.redis import RedisOptions, RedisStore
from server.store.redis_health import UnfitRedis
from server.store.redis_keys import Keys
from server.store.redis_wire import control_wire
from server.store.sealing import PlainSealer

if TYPE_CHECKING:
    from tests.server.store.conftest import Make

TENANT = "tenant"
ONE = "sess_one"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of this test alone, to be maltreated."""
    with RedisProcess(tmp_path / "own") as process:
        yield process


@asynccontextmanager
async def opened(process: RedisProcess, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisOptions(process.url, **options), sealer=PlainSealer())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _seconds_until_refused(call: Awaitable[object]) -> float:
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call
    return time.monotonic() - begin


async def _patiently(store: RedisStore, session_id: str) -> SessionRecord:
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.get(TENANT, session_id)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def _until_well(store: RedisStore) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                return await store.ping()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_redis_that_stands_still_costs_a_second_once(own: RedisProcess, make: Make) -> None:
    async with opened(own) as store:
        lease = await make.begun(store)
        own.suspend()
        try:
            calls: list[Awaitable[object]] = [store.get(TENANT, ONE) for _ in range(100)]
            calls += [store.journal([make.entry(lease, 0, [1])]), store.load(ONE), store.ping()]
            calls += [store.save_snapshot(lease, 0, b"state"), store.list(TENANT, limit=1, after=None, order="asc")]
            assert max(await asyncio.gather(*map(_seconds_until_refused, calls))) < 1.0
            patience = sorted(
                await asyncio.gather(*(_seconds_until_refused(store.get(TENANT, ONE)) for _ in range(20)))
            )
            assert patience[-2] < 0.3, "one may try again, the others are refused at once"
            await asyncio.sleep(0.25)
            assert max(await asyncio.gather(*(_seconds_until_refused(store.ping()) for _ in range(50)))) < 1.0
        finally:
            own.resume()
        await _until_well(store)
        lease = await store.acquire(ONE, "server/0/2", 60)
        loaded = await store.load(ONE)
        assert list(loaded.tail) in ([], [1])
        await make.appended(store, lease, 7)


async def test_one_silent_node_of_a_cluster_holds_up_nobody_else(tmp_path: Path, make: Make) -> None:
    keys = Keys("palimpsest")
    with RedisClusterProcesses(tmp_path, extra=("--cluster-require-full-coverage", "no")) as cluster:
        store = RedisStore(RedisOptions(cluster.url), sealer=PlainSealer())
        await store.open()
        of_node: dict[int, str] = {}
        for number in range(40):
            name = f"sess_{number}"
            of_node[key_slot(keys.session(name).encode()) // 5462] = name
            await store.create(make.record(name))
        cluster.nodes[0].suspend()
        # A busy machine may fail some of the others by itself. If the silent node failed them, it would in every round.
        async with asyncio.timeout(30):
            answered = False
            while not answered:
                silent = asyncio.gather(*(_seconds_until_refused(store.get(TENANT, of_node[0])) for _ in range(50)))
                others = (store.get(TENANT, of_node[node]) for node in (1, 2) * 5)
                outcomes = await asyncio.gather(*others, return_exceptions=True)
                assert max(await silent) < 1.0
                answered = not any(isinstance(one, BaseException) for one in outcomes)
        cluster.nodes[0].resume()
        await _until_well(store)
        assert (await _patiently(store, of_node[0])).id == of_node[0]
        await store.close()


async def test_replies_belong_to_their_calls_whoever_gives_up(own: RedisProcess, make: Make) -> None:
    """Callers that go away, and a Redis that answers after the time is up."""
    async with opened(own, connections=4) as store:
        names = [f"sess_{number}" for number in range(20)]
        for name in names:
            await store.create(make.record(name, metadata={"name": name}))
        chance = random.Random(7)
        wrong: list[str] = []

        async def ask(name: str) -> None:
            try:
                async with asyncio.timeout(chance.choice([0.0005, 0.002, 0.01, 5])):
                    if (await store.get(TENANT, name)).metadata != {"name": name}:
                        wrong.append(name)
            except (TimeoutError, StoreUnavailable):
                return

        for number in range(4):
            if number == 2:
                own.suspend()
            asked = asyncio.gather(*(ask(chance.choice(names)) for _ in range(100)))
            await asyncio.sleep(0.85 if number == 2 else 0)
            if number == 2:
                own.resume()
            await asked
        await _until_well(store)
        for name in names:
            assert (await _patiently(store, name)).metadata == {"name": name}
        assert not wrong


async def test_what_was_accepted_survives_a_kill_and_scripts_are_sent_again(own: RedisProcess, make: Make) -> None:
    async with opened(own) as store:
        assert store.durability == "fsync"
        lease = await make.begun(store)
        await make.appended(store, lease, 1, 2, 3)
        await store.save_snapshot(lease, 2, b"two")
        before = await store.load(ONE)
        own.kill()
        assert await _seconds_until_refused(store.get(TENANT, ONE)) < 1.0
        own.start()  # with an empty script cache
        await _until_well(store)
        assert await store.load(ONE) == before
        entries = [make.entry(lease, 3 + number, [number]) for number in range(3)]
        await make.written(store, *entries)


async def test_forgotten_scripts_are_sent_again_in_a_pipeline(own: RedisProcess, make: Make) -> None:
    async with opened(own) as store:
        lease = await make.begun(store)
        with redis.Redis(port=own.port) as client:
            client.script_flush()
        await make.written(store, *(make.entry(lease, number, [number]) for number in range(5)))
        assert tuple((await store.load(ONE)).tail) == (0, 1, 2, 3, 4)


async def test_one_lost_connection_is_not_a_lost_redis(own: RedisProcess, make: Make) -> None:
    async with opened(own) as store:
        await store.create(make.record())
        with redis.Redis(port=own.port) as client:
            for _ in range(3):
                client.client_kill_filter(_type="normal", skipme=True)
                assert (await store.get(TENANT, ONE)).id == ONE


async def test_a_full_redis_says_so_and_goes_on_reading(tmp_path: Path, make: Make) -> None:
    with RedisProcess(tmp_path / "full", maxmemory=4 << 20) as process, redis.Redis(port=process.port) as client:
        async with opened(process) as store:
            lease = await make.begun(store)
            await make.written(store, make.entry(lease, 0, [1], begins=make.generation(start=1)))
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.ping()
            begun = await store.load(ONE)
            entry = make.entry(lease, 1, [2], operation=make.operation(), sampled_by="gen_one")
            [outcome] = await store.journal([entry])
            assert isinstance(outcome, StoreUnavailable)
            assert "maxmemory" in outcome.message
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.save_snapshot(lease, 1, b"x" * 1000)
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.create(make.record("sess_two"))
            assert await store.load(ONE) == begun
            assert await store.operation(ONE, "op_one") is None
            client.config_set("maxmemory", 0)
            await make.written(store, entry)
            client.config_set("maxmemory", 1)
            await store.delete(TENANT, ONE)  # the way out of it


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_would_throw_sessions_away_is_refused_at_the_start(own: RedisProcess, policy: str) -> None:
    with redis.Redis(port=own.port) as client:
        client.config_set("maxmemory-policy", policy)
    store = RedisStore(RedisOptions(own.url), sealer=PlainSealer())
    with pytest.raises(UnfitRedis, match="noeviction"):
        await store.open()
    await store.close()


async def test_a_store_opens_without_redis_and_finds_it_later(own: RedisProcess, make: Make) -> None:
    own.kill()
    async with opened(own) as store:
        assert await _seconds_until_refused(store.ping()) < 1.0
        assert await _seconds_until_refused(store.create(make.record())) < 1.0
        own.start()
        await _until_well(store)
        await store.create(make.record())
        assert store.durability == "fsync"


async def test_one_that_comes_later_is_looked_at_too(own: RedisProcess, make: Make) -> None:
    own.kill()
    async with opened(own) as store:
        own.start()
        with redis.Redis(port=own.port) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        await asyncio.sleep(0.3)
        for _ in range(2):
            with pytest.raises(UnfitRedis):
                await store.create(make.record())


@pytest.mark.parametrize(
    ("appendfsync", "durability"), [(None, "memory"), ("everysec", "one_second"), ("no", "memory")]
)
async def test_durability_is_what_redis_is_set_to(tmp_path: Path, appendfsync: Any, durability: str) -> None:
    with RedisProcess(tmp_path / "other", appendfsync=appendfsync) as process:
        async with opened(process) as store:
            assert store.durability == durability


async def test_answers_before_a_cut_count_and_the_others_are_unknown() -> None:
    """A server that answers two scripts of three, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(65_536):
            scripts = command.count(b"EVALSHA")
            writer.write(b"*1\r\n$2\r\nok\r\n-NOSCRIPT none\r\n" if scripts else b"+OK\r\n" * command.count(b"SETINFO"))
            if scripts:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        wire = control_wire(RedisOptions(f"redis://127.0.0.1:{port}"))
        outcomes = await wire.pipeline([("EVALSHA", "0" * 40, 1, "key")] * 3)
        await wire.close()
    assert outcomes[0] == [b"ok"]
    assert isinstance(outcomes[1], redis.exceptions.NoScriptError)
    assert isinstance(outcomes[2], redis.exceptions.ConnectionError)


async def test_a_store_that_closes_sees_to_the_end_of_what_was_begun(own: RedisProcess, make: Make) -> None:
    store = RedisStore(RedisOptions(own.url), sealer=PlainSealer())
    await store.open()
    lease = await make.begun(store)
    writing = asyncio.ensure_future(store.journal([make.entry(lease, 0, [1])]))
    waiting = asyncio.ensure_future(store.wanted("server/0/1", 30))
    await asyncio.sleep(0.05)
    late = asyncio.ensure_future(store.journal([make.entry(lease, 1, [2])]))
    await asyncio.sleep(0)
    late.cancel()
    async with asyncio.timeout(3):
        await store.close()
    assert isinstance((await writing)[0], str)
    with pytest.raises(StoreUnavailable):
        await waiting
    async with opened(own) as again:
        assert tuple((await again.load(ONE)).tail) == (1, 2)
