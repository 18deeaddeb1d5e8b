"""What every store must do with records: the index, metadata, lifetimes, ETags."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.errors import (
    Internal,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from server.store.base import Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE = "sess_one"


async def test_a_created_session_reads_back_the_same(store: Store, make: Make) -> None:
    record = make.record(metadata={"title": "naïve 😀 \u0000 end", "lone": "\ud800"})
    created = await store.create(record)
    assert re.fullmatch("[0-9a-f]{8}", created.tag)
    assert created == replace(record, tag=created.tag)
    assert await store.get(TENANT, ONE) == created == await store.head(ONE)


@pytest.mark.parametrize("session_id", ["sess_none", "", "../../etc", "a\ud800", "a\u0000b", "x" * 10_000])
async def test_an_unknown_id_is_not_found(store: Store, make: Make, session_id: str) -> None:
    await store.create(make.record())
    for call in make.calls(store, session_id):
        with pytest.raises(NotFound):
            await call()


async def test_another_tenants_session_is_not_found(store: Store, make: Make) -> None:
    record = await store.create(make.record())
    with pytest.raises(NotFound):
        await store.get("other", ONE)
    with pytest.raises(NotFound):
        await store.update("other", ONE, metadata={"taken": "over"})
    with pytest.raises(NotFound):
        await store.delete("other", ONE)
    assert not (await store.list("other", limit=10, after=None, order="asc")).records
    assert await store.get(TENANT, ONE) == record


async def test_a_session_that_is_there_is_returned_as_it_is(store: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store)
    await make.appended(store, lease, 1, 2)
    before = await store.load(ONE)
    clock.forward(5)
    assert await store.create(make.record(metadata={"again": "yes"}, ttl_seconds=9)) == before.record
    assert await store.load(ONE) == before


async def test_the_id_of_an_expired_session_is_free(store: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store, ttl_seconds=10)
    await make.appended(store, lease, 1, 2)
    clock.forward(11)
    record = await store.create(make.record(metadata={"life": "second"}))
    loaded = await store.load(ONE)
    assert (loaded.record, tuple(loaded.tail)) == (record, ())


async def test_an_id_cannot_be_taken_by_another_tenant(store: Store, make: Make) -> None:
    first = await store.create(make.record(metadata={"which": "first"}))
    with pytest.raises(Internal):
        await store.create(make.record(tenant="other", metadata={"which": "second"}))
    assert await store.get(TENANT, ONE) == first


async def test_update_changes_only_what_it_names(store: Store, make: Make, clock: Clock) -> None:
    before = await store.create(make.record(metadata={"a": "1"}, ttl_seconds=100))
    clock.forward(10)
    changed = await store.update(TENANT, ONE, metadata={"b": "2"})
    assert changed == await store.get(TENANT, ONE)
    assert changed.metadata == {"b": "2"}
    assert (changed.ttl_seconds, changed.expires_at) == (100, clock.now + 100)
    assert (changed.version, changed.updated_at, changed.created_at) == (2, clock.now, before.created_at)
    forever = await store.update(TENANT, ONE, ttl_seconds=None)
    assert (forever.metadata, forever.ttl_seconds, forever.expires_at) == ({"b": "2"}, None, None)


async def test_a_change_draws_a_new_etag(store: Store, make: Make) -> None:
    etags = [(await store.create(make.record())).etag]
    etags.append((await store.update(TENANT, ONE, metadata={})).etag)
    lease = await store.acquire(ONE, "server/0/1", 60)
    etags.append(await make.appended(store, lease, 1))
    etags += await make.written(store, make.entry(lease, 1, [2]), make.entry(lease, 2))
    assert (await store.get(TENANT, ONE)).etag == etags[-1]
    assert [etag.split("-")[0] for etag in etags] == ["1", "2", "3", "4", "5"]
    assert len({etag.split("-")[1] for etag in etags}) == 5


async def test_what_changes_nothing_leaves_the_etag(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    etag = await make.appended(store, lease, 1)
    await store.update(TENANT, ONE)
    await store.save_snapshot(lease, 1, b"one")
    await store.renew([lease], 60)
    await store.release(lease)
    await store.acquire(ONE, "server/1/1", 60)
    assert (await store.get(TENANT, ONE)).etag == etag


@pytest.mark.parametrize("wrong", ["", "1", "1-", "2-00000000", "not an etag \ud800"])
async def test_update_and_delete_refuse_an_etag_that_is_not_the_newest(store: Store, make: Make, wrong: str) -> None:
    lease = await make.begun(store)
    old = (await store.get(TENANT, ONE)).etag
    newest = await make.appended(store, lease, 1)
    for if_match in (frozenset({old}), frozenset({wrong, old}), frozenset[str]()):
        with pytest.raises(PreconditionFailed):
            await store.update(TENANT, ONE, metadata={"late": "yes"}, if_match=if_match)
        with pytest.raises(PreconditionFailed):
            await store.delete(TENANT, ONE, if_match=if_match)
    record = await store.update(TENANT, ONE, metadata={"late": "no"}, if_match=frozenset({old, newest, wrong}))
    assert (record.metadata, record.version) == ({"late": "no"}, 3)
    await store.delete(TENANT, ONE, if_match=frozenset({record.etag}))
    assert await make.listed(store) == []


async def test_of_two_updates_at_one_version_one_wins(store: Store, other: Store, make: Make) -> None:
    etag = (await store.create(make.record())).etag
    outcomes = await asyncio.gather(
        *(
            each.update(TENANT, ONE, metadata={"by": str(number)}, if_match=frozenset({etag}))
            for number, each in enumerate([store, other] * 3)
        ),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, PreconditionFailed)]
    assert len(refused) == len(outcomes) - 1
    assert (await store.get(TENANT, ONE)).version == 2


async def test_lists_go_through_every_session_once_in_both_orders(store: Store, make: Make) -> None:
    moments = {"sess_c": 1.0, "sess_a": 2.0, "sess_b": 2.0, "sess_d": 3.5, "sess_e": 3.5}
    for session_id, created_at in moments.items():
        await store.create(make.record(session_id, created_at=created_at))
    await store.create(make.record("sess_other", tenant="other", created_at=2.0))
    expected = ["sess_c", "sess_a", "sess_b", "sess_d", "sess_e"]
    for limit in (1, 2, 5, 6):
        assert await make.listed(store, limit, "asc") == expected
        assert await make.listed(store, limit, "desc") == expected[::-1]


@pytest.mark.parametrize("after", ["sess_none", "sess_other", "\ud800"])
async def test_a_list_behind_an_unknown_session_is_invalid(store: Store, make: Make, after: str) -> None:
    await store.create(make.record("sess_other", tenant="other"))
    with pytest.raises(InvalidRequest) as caught:
        await store.list(TENANT, limit=10, after=after, order="asc")
    assert caught.value.param == "after"
