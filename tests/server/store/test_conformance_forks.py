"""Rule 8 of server/store/base.py, for every store: forks; and sessions that come with a past."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.errors import Internal, NotFound, PreconditionFailed
from server.store.base import Lease, SessionRecord, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
PARENT, CHILD = "sess_parent", "sess_child"


async def _parent(store: Store, make: Make) -> Lease:
    """Six tokens, two snapshots, something open."""
    lease = await make.begun(store, PARENT)
    await make.appended(store, lease, 0, 1, 2)
    await store.save_snapshot(lease, 2, b"two")
    await make.appended(store, lease, 3)
    await store.save_snapshot(lease, 4, b"four")
    await make.written(store, make.entry(lease, 4, [4, 5], open_text="op\u00e9n", open_tokens=2, turn="asked"))
    return lease


async def _assert_whole(store: Store, session_id: str) -> None:
    loaded = await store.load(session_id)
    assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail)) == (b"four", 4, (4, 5))


async def test_a_fork_goes_on_from_its_parent(store: Store, make: Make, clock: Clock) -> None:
    await _parent(store, make)
    clock.forward(10)
    child = replace(
        make.record(CHILD, metadata={"which": "child"}, ttl_seconds=50), model="ignored", memory="ignored", turn="ended"
    )
    record = await store.fork(TENANT, PARENT, child)
    parent = await store.get(TENANT, PARENT)
    assert record == await store.get(TENANT, CHILD)
    assert (record.id, record.tenant, record.metadata) == (CHILD, TENANT, {"which": "child"})
    assert (record.ttl_seconds, record.expires_at, record.created_at) == (50, clock.now + 50, clock.now)
    for name in ("model", "memory", "journaled", "open_text", "open_tokens", "turn"):
        assert getattr(record, name) == getattr(parent, name), name
    assert record.etag != parent.etag
    await _assert_whole(store, CHILD)
    assert await make.listed(store) == [PARENT, CHILD]


async def test_parent_and_child_have_their_own_futures(store: Store, make: Make) -> None:
    parent_lease = await _parent(store, make)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    child_lease = await store.acquire(CHILD, "server/1/1", 60)
    await make.appended(store, parent_lease, 60)
    await make.appended(store, child_lease, 70, 71)
    await store.save_snapshot(child_lease, 7, b"child")
    assert tuple((await store.load(PARENT)).tail) == (4, 5, 60)
    loaded = await store.load(CHILD)
    assert (loaded.snapshot, loaded.snapshot_position, tuple(loaded.tail)) == (b"child", 7, (71,))


async def test_a_lease_of_the_parent_does_not_write_the_child(store: Store, make: Make) -> None:
    lease = await _parent(store, make)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    await store.acquire(CHILD, "server/1/1", 60)
    fences = {lease.fence, lease.fence + 5}
    for fence in fences - {(await store.acquire(CHILD, "server/1/2", 60)).fence}:
        [outcome] = await store.journal([make.entry(Lease(CHILD, fence), 6, [6])])
        assert not isinstance(outcome, str)


@pytest.mark.parametrize("first", [PARENT, CHILD])
async def test_rule_8_deleting_the_one_leaves_the_other_whole(store: Store, make: Make, first: str) -> None:
    await _parent(store, make)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    await store.delete(TENANT, first)
    await store.sweep()
    stays = CHILD if first == PARENT else PARENT
    await _assert_whole(store, stays)
    lease = await store.acquire(stays, "server/0/2", 60)
    await make.appended(store, lease, 6)
    await store.save_snapshot(lease, 7, b"seven")
    assert (await store.load(stays)).snapshot == b"seven"
    with pytest.raises(NotFound):
        await store.load(first)


async def test_rule_8_a_parent_that_goes_on_leaves_its_fork_what_it_had(store: Store, make: Make) -> None:
    lease = await _parent(store, make)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    for position in (7, 8, 9):
        await make.appended(store, lease, position - 1)
        await store.save_snapshot(lease, position, b"later")
    await store.sweep()
    await _assert_whole(store, CHILD)


async def test_rule_8_grandchildren_stay_whole_when_those_before_them_go(store: Store, make: Make) -> None:
    await _parent(store, make)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    await store.fork(TENANT, CHILD, make.record("sess_grandchild"))
    await store.delete(TENANT, CHILD)
    await store.delete(TENANT, PARENT)
    await store.sweep()
    await _assert_whole(store, "sess_grandchild")
    await store.fork(TENANT, "sess_grandchild", make.record("sess_last"))
    await store.delete(TENANT, "sess_grandchild")
    await _assert_whole(store, "sess_last")


async def test_an_expired_parent_leaves_its_fork_whole(store: Store, make: Make, clock: Clock) -> None:
    await _parent(store, make)
    await store.update(TENANT, PARENT, ttl_seconds=10)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    clock.forward(11)
    assert await store.sweep() == 1
    await _assert_whole(store, CHILD)


async def test_a_session_without_snapshots_forks_too(store: Store, make: Make) -> None:
    lease = await make.begun(store, PARENT)
    await store.fork(TENANT, PARENT, make.record("sess_empty"))
    await make.appended(store, lease, 0, 1)
    await store.fork(TENANT, PARENT, make.record(CHILD))
    await store.delete(TENANT, PARENT)
    loaded = await store.load(CHILD)
    assert (loaded.snapshot, tuple(loaded.tail)) == (None, (0, 1))
    assert tuple((await store.load("sess_empty")).tail) == ()


async def test_a_repeated_fork_is_the_first_one(store: Store, make: Make) -> None:
    lease = await _parent(store, make)
    etag = (await store.get(TENANT, PARENT)).etag
    first = await store.fork(TENANT, PARENT, make.record(CHILD), if_match=frozenset({etag}))
    await make.appended(store, lease, 6)
    repeated = make.record(CHILD, metadata={"again": "yes"})
    assert await store.fork(TENANT, PARENT, repeated, if_match=frozenset({etag})) == first
    await _assert_whole(store, CHILD)
    await store.delete(TENANT, CHILD)
    await store.delete(TENANT, PARENT)
    assert await make.listed(store) == []


async def test_a_fork_of_what_has_changed_is_refused(store: Store, make: Make) -> None:
    lease = await _parent(store, make)
    etag = (await store.get(TENANT, PARENT)).etag
    await make.appended(store, lease, 6)
    with pytest.raises(PreconditionFailed):
        await store.fork(TENANT, PARENT, make.record(CHILD), if_match=frozenset({etag}))
    with pytest.raises(NotFound):
        await store.get(TENANT, CHILD)


async def test_another_tenant_cannot_fork(store: Store, make: Make) -> None:
    await _parent(store, make)
    with pytest.raises(NotFound):
        await store.fork("other", PARENT, make.record(CHILD, tenant="other"))
    assert not (await store.list("other", limit=10, after=None, order="asc")).records
    await store.create(make.record("sess_taken", tenant="other"))
    with pytest.raises(Internal):
        await store.fork(TENANT, PARENT, make.record("sess_taken"))


async def test_operations_and_generations_stay_with_the_parent(store: Store, make: Make) -> None:
    lease = await make.begun(store, PARENT)
    begins = make.generation(session_id=PARENT)
    await make.written(store, make.entry(lease, 0, [0], operation=make.operation(), begins=begins))
    await store.fork(TENANT, PARENT, make.record(CHILD))
    assert await store.operation(CHILD, "op_one") is None
    await store.delete(TENANT, CHILD)
    assert await store.generation("gen_one") == begins


# Sessions with a past


def _adopted(make: Make, journaled: int) -> SessionRecord:
    return make.record(
        metadata={"from": "elsewhere"}, journaled=journaled, open_text="ends", open_tokens=1, turn="open"
    )


@pytest.mark.parametrize("tail", [(), (7,), (7, 8, 9)])
async def test_an_adopted_session_is_snapshot_and_tail(store: Store, make: Make, tail: tuple[int, ...]) -> None:
    record = _adopted(make, 10)
    created = await store.adopt(record, b"state", tail)
    assert created == replace(record, tag=created.tag)
    loaded = await store.load(record.id)
    assert (loaded.record, loaded.snapshot, loaded.snapshot_position) == (created, b"state", 10 - len(tail))
    assert tuple(loaded.tail) == tail
    lease = await store.acquire(record.id, "server/0/1", 60)
    await make.appended(store, lease, 70)
    assert tuple((await store.load(record.id)).tail) == (*tail, 70)
    await store.save_snapshot(lease, 11, b"eleven")
    assert (await store.load(record.id)).snapshot == b"eleven"


async def test_a_session_may_be_adopted_without_a_snapshot(store: Store, make: Make) -> None:
    await store.adopt(_adopted(make, 2), None, [5, 6])
    loaded = await store.load("sess_one")
    assert (loaded.snapshot, tuple(loaded.tail), loaded.record.open_text) == (None, (5, 6), "ends")
    await store.delete(TENANT, "sess_one")


async def test_a_repeated_adoption_is_the_first_one(store: Store, make: Make) -> None:
    first = await store.adopt(_adopted(make, 3), b"state", [2])
    assert await store.adopt(_adopted(make, 4), b"another", [2, 3]) == first
    loaded = await store.load("sess_one")
    assert (loaded.snapshot, tuple(loaded.tail)) == (b"state", (2,))
    with pytest.raises(Internal):
        await store.adopt(replace(_adopted(make, 3), tenant="other"), b"state", [2])


@pytest.mark.parametrize(("snapshot", "tail"), [(b"state", [1, 2, 3, 4]), (None, [1]), (b"state", [-1])])
async def test_a_past_that_does_not_add_up_is_refused(
    store: Store, make: Make, snapshot: bytes | None, tail: list[int]
) -> None:
    with pytest.raises(Internal):
        await store.adopt(_adopted(make, 3), snapshot, tail)
    assert await make.listed(store) == []
