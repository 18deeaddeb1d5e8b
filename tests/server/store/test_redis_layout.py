"""What lies in Redis: nothing that nobody needs, everything that somebody points to, and one slot a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot

from bench.redis_process import RedisProcess
from server.errors import NotFound, StateRefused, StoreUnavailable
from server.store import redis_forks, redis_snapshots
from server.store.base import LeaseHeld
from server.store.redis import RedisOptions, RedisStore
from server.store.redis_keys import Keys
from server.store.sealing import PlainSealer

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE, CHILD = "sess_one", "sess_child"


class Broken(Exception):
    """Stands for the death of the process."""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("layout"), appendfsync=None) as process:
        yield process


@pytest.fixture
def client(process: RedisProcess) -> Iterator[Any]:
    with redis.Redis(port=process.port, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
async def store(process: RedisProcess, client: Any, clock: Clock) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisOptions(process.url), sealer=PlainSealer(), clock=clock, operation_ttl_seconds=100)
    await store.open()
    yield store
    await store.close()


def _fail_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    def reach(passed: str) -> None:
        if passed == name:
            raise Broken(name)

    monkeypatch.setattr(module, "failpoint", reach)


def _snapshots(client: Any) -> set[str]:
    return set(client.scan_iter("*:snapshot:*"))


async def _busy_life(store: RedisStore, make: Make, session_id: str = ONE) -> None:
    """Something in every kind of key."""
    lease = await make.begun(store, session_id, ttl_seconds=50)
    begins = make.generation(f"gen_{session_id}", session_id=session_id, start=1)
    await make.written(store, make.entry(lease, 0, [0], operation=make.operation(), begins=begins))
    for position in range(1, 5):
        await make.written(store, make.entry(lease, position, [position], sampled_by=begins.id))
        await store.save_snapshot(lease, position, b"state")
    with pytest.raises(LeaseHeld):
        await store.acquire(session_id, "other/0/1", 10)
    await store.wanted("server/0/1", 0)


async def test_all_keys_of_a_session_are_in_one_slot_and_go_with_it(store: RedisStore, client: Any, make: Make) -> None:
    await _busy_life(store, make)
    keys = list(client.scan_iter(f"*{{{ONE}}}*"))
    assert len(keys) == 9
    assert len({key_slot(key.encode()) for key in keys}) == 1
    await store.delete(TENANT, ONE)
    assert list(client.scan_iter()) == []


async def test_an_expired_session_leaves_nothing(store: RedisStore, client: Any, make: Make, clock: Clock) -> None:
    await _busy_life(store, make)
    clock.forward(51)
    assert await store.sweep() == 1
    assert list(client.scan_iter()) == []


async def test_parent_child_and_grandchild_leave_nothing(
    store: RedisStore, client: Any, make: Make, clock: Clock
) -> None:
    await _busy_life(store, make)
    await store.fork(TENANT, ONE, make.record(CHILD))
    await store.delete(TENANT, ONE)
    assert len(_snapshots(client)) == 2
    await store.fork(TENANT, CHILD, make.record("sess_grandchild"))
    await store.delete(TENANT, CHILD)
    assert len(_snapshots(client)) == 2
    lease = await store.acquire("sess_grandchild", "server/0/1", 10)
    for _ in range(2):
        await store.save_snapshot(lease, 5, b"own")
    assert {key.split(":")[1] for key in _snapshots(client)} == {"{sess_grandchild}"}
    await store.delete(TENANT, "sess_grandchild")
    clock.forward(100)
    await store.sweep()
    assert list(client.scan_iter()) == []


async def test_two_snapshots_are_kept_and_last(store: RedisStore, client: Any, make: Make) -> None:
    await _busy_life(store, make)
    assert len(_snapshots(client)) == 2
    assert {client.ttl(key) for key in _snapshots(client)} == {-1}
    assert client.xlen(Keys("palimpsest").journal(ONE)) == 2  # from 3, which the older one covers, to 5


@pytest.mark.parametrize(("place", "kept"), [("snapshot.written", 2), ("snapshot.pointed", 2)])
async def test_a_death_amid_a_snapshot_leaves_only_what_goes_by_itself(
    store: RedisStore, client: Any, make: Make, monkeypatch: pytest.MonkeyPatch, place: str, kept: int
) -> None:
    await _busy_life(store, make)
    lease = await store.acquire(ONE, "server/0/2", 60)
    with monkeypatch.context() as patch:
        _fail_at(patch, redis_snapshots, place)
        with pytest.raises(Broken):
            await store.save_snapshot(lease, 5, b"five")
    lasting = [key for key in _snapshots(client) if client.ttl(key) == -1]
    going = [key for key in _snapshots(client) if 0 < client.ttl(key) <= 80]
    assert (len(lasting), len(going)) == (kept, 1)
    assert (await store.load(ONE)).snapshot == (b"five" if place == "snapshot.pointed" else b"state")
    for key in going:
        client.delete(key)
    await store.save_snapshot(lease, 5, b"again")
    assert (await store.load(ONE)).snapshot == b"again"


async def test_a_fork_that_broke_off_gives_back_what_it_pinned(
    store: RedisStore, client: Any, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _busy_life(store, make)
    with monkeypatch.context() as patch:
        _fail_at(patch, redis_forks, "fork.pinned")
        with pytest.raises(Broken):
            await store.fork(TENANT, ONE, make.record(CHILD))
    await store.delete(TENANT, ONE)
    await store.sweep()
    assert len(_snapshots(client)) == 2  # the fork could still go on
    clock.forward(61)
    await store.sweep()
    assert list(client.scan_iter()) == []


async def test_a_fork_that_stood_still_for_too_long_is_refused(
    store: RedisStore, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _busy_life(store, make)
    with monkeypatch.context() as patch:
        patch.setattr(redis_forks, "failpoint", lambda name: clock.forward(31) if name == "fork.pinned" else None)
        with pytest.raises(StoreUnavailable):
            await store.fork(TENANT, ONE, make.record(CHILD))
    with pytest.raises(NotFound):
        await store.get(TENANT, CHILD)
    await store.fork(TENANT, ONE, make.record(CHILD))


async def test_a_fork_of_a_damaged_snapshot_still_has_the_one_before(
    store: RedisStore, client: Any, make: Make
) -> None:
    await _busy_life(store, make)
    await store.fork(TENANT, ONE, make.record(CHILD))
    newest = max(_snapshots(client), key=lambda key: int(key.split(":")[3].split("-")[0]))
    client.setrange(newest, 12, "x")
    for session_id in (ONE, CHILD):
        loaded = await store.load(session_id)
        assert (loaded.skipped, loaded.snapshot_position, tuple(loaded.tail)) == (1, 3, (3, 4))
    client.delete(newest)
    assert (await store.load(CHILD)).skipped == 1
    for key in _snapshots(client):
        client.delete(key)
    with pytest.raises(StateRefused, match="missing"):
        await store.load(CHILD)


async def test_a_snapshot_under_another_sessions_name_is_refused(store: RedisStore, client: Any, make: Make) -> None:
    for session_id in (ONE, "sess_two"):
        await _busy_life(store, make, session_id)
    ours, theirs = (sorted(client.scan_iter(f"*{{{name}}}:snapshot:4-*")) for name in (ONE, "sess_two"))
    client.copy(theirs[0], ours[0], replace=True)
    assert (await store.load(ONE)).skipped == 1


async def test_dangling_entries_of_the_index_are_passed_over_and_cleaned(
    store: RedisStore, client: Any, make: Make, clock: Clock
) -> None:
    for number in range(4):
        await store.create(make.record(f"sess_{number}", created_at=clock.now - 100 + number))
    await store.create(make.record("sess_new"))
    for name in ("sess_1", "sess_2", "sess_new"):
        client.delete(Keys("palimpsest").session(name))
    assert await make.listed(store, limit=1) == ["sess_0", "sess_3"]
    assert await make.listed(store, order="desc") == ["sess_3", "sess_0"]
    assert client.zrange(Keys("palimpsest").index(TENANT), 0, -1) == ["sess_0", "sess_3", "sess_new"]


@pytest.mark.parametrize("tenant", ["a b:{c}*", "", "\u00fc\u0000\n", "x" * 5000])
async def test_a_tenant_may_have_any_name(store: RedisStore, make: Make, tenant: str) -> None:
    await store.create(make.record(tenant=tenant))
    page = await store.list(tenant, limit=5, after=None, order="asc")
    assert [record.tenant for record in page.records] == [tenant]
    assert (await store.claim(tenant, "op", "digest", ONE)).session_id == ONE


async def test_operations_and_generations_that_are_too_old_go_from_redis(
    store: RedisStore, client: Any, make: Make, clock: Clock
) -> None:
    lease = await make.begun(store)
    for number in range(3):
        begins = make.generation(f"gen_{number}", start=2 * number)
        entry = make.entry(lease, 2 * number, [1], operation=make.operation(f"op_{number}"), begins=begins)
        await make.written(store, entry, make.entry(lease, 2 * number + 1, [2], sampled_by=begins.id))
        clock.forward(60)
    keys = Keys("palimpsest")
    await make.appended(store, lease, 9)
    assert set(client.hkeys(keys.operations(ONE))) == {"op_2"}
    assert {field.split("|")[0] for field in client.hkeys(keys.generations(ONE))} == {"gen_2"}
    assert client.xlen(keys.sampled(ONE)) == 1
    assert await store.generation("gen_2") == make.generation("gen_2", start=4, tokens=[2])
    for key in (keys.operations(ONE), keys.operation_times(ONE), keys.generations(ONE), keys.sampled(ONE)):
        assert 0 < client.ttl(key) <= 160


async def test_a_fence_is_not_given_again_after_redis_lost_its_newest_writes(
    store: RedisStore, client: Any, make: Make
) -> None:
    await store.create(make.record())
    key = Keys("palimpsest").session(ONE)
    client.copy(key, "before")
    lost = await store.acquire(ONE, "server/0/1", 60)
    client.copy("before", key, replace=True)
    given = await store.acquire(ONE, "other/0/1", 60)
    assert given.fence != lost.fence
    [outcome] = await store.journal([make.entry(lost, 0, [1])])
    assert not isinstance(outcome, str)


async def test_leases_follow_the_time_of_redis(process: RedisProcess, client: Any, make: Make) -> None:
    store = RedisStore(RedisOptions(process.url), sealer=PlainSealer())
    await store.open()
    try:
        await store.create(make.record())
        await store.acquire(ONE, "server/0/1", 0.2)
        with pytest.raises(LeaseHeld) as caught:
            await store.acquire(ONE, "other/0/1", 60)
        assert 0 < caught.value.seconds <= 0.2
        await asyncio.sleep(0.25)
        await store.acquire(ONE, "other/0/1", 60)
    finally:
        await store.close()
