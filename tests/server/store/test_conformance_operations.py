"""Rule 7 of server/store/base.py, for every store: operations, and claims of those that make a session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from server.errors import (
    OperationMismatch,
    ServerError,
)
from server.store.base import AlreadyApplied, Claim, Store

if TYPE_CHECKING:
    from tests.server.store.conftest import Clock, Make

TENANT = "tenant"
ONE = "sess_one"


async def test_rule_7_an_operation_is_recorded_with_its_tokens(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    assert await store.operation(ONE, "op_one") is None
    [etag] = await store.journal([make.entry(lease, 0, [1], operation=make.operation())])
    assert isinstance(etag, str)
    found = await store.operation(ONE, "op_one")
    assert found == make.operation()
    assert found is not None
    assert found.etag == etag == (await store.head(ONE)).etag
    assert await store.operation(ONE, "op_two") is None


async def test_rule_7_a_refused_entry_records_no_operation(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    [outcome] = await store.journal([make.entry(lease, 5, [1], operation=make.operation())])
    assert isinstance(outcome, ServerError)
    assert await store.operation(ONE, "op_one") is None


@pytest.mark.parametrize("start", [0, 1])
async def test_rule_7_a_repeat_is_refused_and_writes_nothing(store: Store, make: Make, start: int) -> None:
    lease = await make.begun(store)
    entries = [
        make.entry(lease, 0, [1], operation=make.operation()),
        make.entry(lease, start, [2], operation=make.operation()),
        make.entry(lease, start, [3], operation=make.operation(digest="another")),
    ]
    outcomes = await store.journal(entries)
    assert [type(outcome) for outcome in outcomes] == [str, AlreadyApplied, OperationMismatch]
    assert tuple((await store.load(ONE)).tail) == (1,)
    assert (await store.get(TENANT, ONE)).version == 2
    assert await store.operation(ONE, "op_one") == make.operation()


async def test_rule_7_operation_ids_belong_to_their_session(store: Store, make: Make) -> None:
    leases = [await make.begun(store, name) for name in ("sess_a", "sess_b")]
    entries = [make.entry(lease, 0, [1], operation=make.operation(digest=lease.session_id)) for lease in leases]
    await make.written(store, *entries)
    found = await store.operation("sess_b", "op_one")
    assert found is not None
    assert found.request_digest == "sess_b"


async def test_rule_7_an_old_operation_is_forgotten(store: Store, make: Make, clock: Clock) -> None:
    lease = await make.begun(store)
    await make.written(store, make.entry(lease, 0, [1], operation=make.operation()))
    clock.forward(3_599)
    await store.sweep()
    assert await store.operation(ONE, "op_one") == make.operation()
    clock.forward(1)
    assert await store.operation(ONE, "op_one") is None
    renewed = make.operation(digest="another")
    await make.written(store, make.entry(lease, 1, [2], operation=renewed))
    await store.sweep()
    assert await store.operation(ONE, "op_one") == renewed


async def test_rule_7_a_repeat_is_told_before_anything_else_is_wrong_with_it(store: Store, make: Make) -> None:
    lease = await make.begun(store)
    etag = (await store.get(TENANT, ONE)).etag
    entry = make.entry(lease, 0, [1], operation=make.operation(), if_match=frozenset({etag}))
    outcomes = await store.journal([entry, entry])
    assert [type(outcome) for outcome in outcomes] == [str, AlreadyApplied]


# Claims


async def test_the_first_claim_counts(store: Store, other: Store) -> None:
    assert await store.claim(TENANT, "op_one", "digest", "sess_a") == Claim("sess_a")
    assert await other.claim(TENANT, "op_one", "digest", "sess_b") == Claim("sess_a")
    with pytest.raises(OperationMismatch) as caught:
        await store.claim(TENANT, "op_one", "another", "sess_c")
    assert caught.value.param == "op_id"
    assert await store.claim(TENANT, "op_two", "another", "sess_c") == Claim("sess_c")


async def test_the_first_answer_counts(store: Store, other: Store) -> None:
    await store.claim(TENANT, "op_one", "digest", "sess_a")
    await store.settle(TENANT, "op_one", b"first \x00\xff")
    await other.settle(TENANT, "op_one", b"second")
    assert await other.claim(TENANT, "op_one", "digest", "sess_b") == Claim("sess_a", b"first \x00\xff")


async def test_claims_belong_to_their_tenant(store: Store) -> None:
    await store.claim(TENANT, "op_one", "digest", "sess_a")
    await store.settle(TENANT, "op_one", b"answer")
    assert await store.claim("other", "op_one", "another", "sess_b") == Claim("sess_b")
    await store.settle("nobody", "op_one", b"answer")
    assert await store.claim("nobody", "op_one", "digest", "sess_c") == Claim("sess_c")


async def test_an_empty_answer_is_an_answer(store: Store) -> None:
    await store.claim(TENANT, "op_one", "digest", "sess_a")
    await store.settle(TENANT, "op_one", b"")
    await store.settle(TENANT, "op_one", b"second")
    assert await store.claim(TENANT, "op_one", "digest", "sess_a") == Claim("sess_a", b"")


async def test_of_many_claims_at_once_one_counts(store: Store, other: Store) -> None:
    claims = await asyncio.gather(
        *(each.claim(TENANT, "op", "digest", f"sess_{number}") for number, each in enumerate([store, other] * 5))
    )
    assert len({claim.session_id for claim in claims}) == 1


async def test_an_old_claim_is_forgotten(store: Store, clock: Clock) -> None:
    await store.claim(TENANT, "op_one", "digest", "sess_a")
    await store.settle(TENANT, "op_one", b"answer")
    clock.forward(3_599)
    await store.sweep()
    assert await store.claim(TENANT, "op_one", "digest", "sess_b") == Claim("sess_a", b"answer")
    clock.forward(1)
    assert await store.claim(TENANT, "op_one", "another", "sess_b") == Claim("sess_b")
