from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.errors import Draining, Internal, InvalidRequest, NotFound, WorkerLost
from server.messages import Answer, Append, Done, GenerationCompleted, GenerationEvent, SamplingParams
from server.schemas.requests import AppendBody
from server.service import Service
from server.settings import Settings
from server.store.base import Store
from server.validation import validated
from tests.server.scripted import ScriptedPool


@pytest.fixture
async def service(settings: Settings, pool: ScriptedPool, store: Store) -> AsyncGenerator[Service, None]:
    await store.open()
    yield Service(settings, pool, store)
    await store.close()


@pytest.fixture
async def generation(service: Service) -> AsyncGenerator[GenerationEvent, None]:
    session = await service.create_session("a")
    return service.generate("a", session.id, prompt=None, messages=None, sampling=SamplingParams(), remember=True)


async def test_closing_a_generation_lets_go_of_it(
    service: Service, pool: ScriptedPool, generation: AsyncGenerator[GenerationEvent, None]
) -> None:
    first = await anext(generation)
    assert not await service.wait_idle(0)
    await generation.aclose()
    assert pool.closed.is_set()
    assert await service.wait_idle(0)
    pool.cancel_found = False
    with pytest.raises(NotFound):
        await service.cancel("a", first.generation_id)


async def test_a_drain_refuses_new_work_and_waits_for_the_old(
    service: Service, pool: ScriptedPool, generation: AsyncGenerator[GenerationEvent, None]
) -> None:
    first = await anext(generation)
    assert service.drain_remaining == 0
    service.begin_drain()
    assert 4 < service.drain_remaining <= 5
    with pytest.raises(Draining):
        await service.create_session("a")
    with pytest.raises(Draining):
        await service.check_ready()
    assert not await service.wait_idle(0.01)
    pool.gate.clear()
    await service.cancel("a", first.generation_id)
    events = [event async for event in generation]
    assert isinstance(events[-1], GenerationCompleted)
    assert (events[-1].generation_id, events[-1].finish_reason) == (first.generation_id, "cancelled")
    assert await service.wait_idle(0)


async def test_an_append_under_way_counts_as_work(service: Service, pool: ScriptedPool) -> None:
    session = await service.create_session("a")
    pool.append_gate.clear()
    async with asyncio.TaskGroup() as group:
        appending = group.create_task(
            service.append("a", session.id, text="x", messages=None, op_id="o", wait="memory")
        )
        await asyncio.sleep(0.05)
        assert not await service.wait_idle(0)
        pool.append_gate.set()
        assert (await appending).tokens == 1
    assert await service.wait_idle(0)


async def test_the_newest_follower_of_a_generation_is_the_one_to_cancel(
    service: Service, pool: ScriptedPool, generation: AsyncGenerator[GenerationEvent, None]
) -> None:
    name = (await anext(generation)).generation_id
    resumed = await service.resume("a", name)
    await anext(resumed.events)
    await generation.aclose()
    pool.store = None
    # Known without the store, though the older follower has let go.
    await service.cancel("a", name)
    assert name in pool.cancelled
    await resumed.events.aclose()
    assert await service.wait_idle(0)


async def test_the_first_message_has_an_operation_id_that_no_client_can_use(
    service: Service, pool: ScriptedPool
) -> None:
    await service.create_session("a", system="Be brief.")
    op_id = pool.appends[0].op_id
    assert op_id
    with pytest.raises(InvalidRequest):
        validated(AppendBody, {"text": "x", "op_id": op_id})


async def test_an_error_for_a_while_keeps_what_a_repeat_will_finish(service: Service, pool: ScriptedPool) -> None:
    pool.fail_append_at = lambda count: WorkerLost("the worker died") if count == 1 else None
    with pytest.raises(WorkerLost):
        await service.create_session("a", system="Be brief.", op_id="k")
    [kept] = (await service.list_sessions("a", limit=9, after=None, order="asc")).records
    assert (await service.create_session("a", system="Be brief.", op_id="k")).id == kept.id


async def test_an_answer_of_another_kind_is_our_fault(
    service: Service, pool: ScriptedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await service.create_session("a")

    async def confused(_request: Append) -> Answer:
        return Done()

    monkeypatch.setattr(pool, "call", confused)
    with pytest.raises(Internal):
        await service.append("a", session.id, text="x", messages=None, op_id="o", wait="memory")
    with pytest.raises(Internal):
        await service.inspect("a", session.id)
