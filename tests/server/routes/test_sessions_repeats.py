"""What makes a session, repeated with its operation id."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from server.errors import InvalidRequest
from server.messages import Append, Forget
from server.store.base import Store
from tests.server.routes.outages import broken
from tests.server.scripted import ScriptedPool


async def everything(http: httpx2.AsyncClient) -> list[str]:
    return [one["id"] for one in (await http.get("/v1/sessions")).json()["data"]]


@pytest.mark.parametrize("how", ["field", "header"])
async def test_a_repeat_gets_the_first_answer(http: httpx2.AsyncClient, pool: ScriptedPool, how: str) -> None:
    body: dict[str, Any] = {"system": "Be brief.", "metadata": {"a": "ä"}, "ttl_seconds": 60}
    headers = {"Idempotency-Key": "k"} if how == "header" else {}
    body |= {} if how == "header" else {"op_id": "k"}
    first = await http.post("/v1/sessions", json=body, headers=headers)
    await http.patch(first.headers["location"], json={"metadata": {"a": "changed"}})
    again = await http.post("/v1/sessions", json=body, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    for name in ("etag", "location"):
        assert again.headers[name] == first.headers[name]
    assert await everything(http) == [first.json()["id"]]
    assert len(pool.appends) == 1


async def test_another_body_or_two_ids_are_refused(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"op_id": "k"})
    other = await http.post("/v1/sessions", json={"op_id": "k", "system": "x"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "op_id_reused")
    both = await http.post("/v1/sessions", json={"op_id": "k"}, headers={"Idempotency-Key": "j"})
    assert (both.status_code, both.json()["error"]["param"]) == (422, "op_id")
    assert (await http.post("/v1/sessions", json={"op_id": "two words"})).json()["error"]["param"] == "op_id"
    assert len(await everything(http)) == 1


async def test_two_at_the_same_time_make_one(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.append_gate.clear()
    body = {"op_id": "k", "system": "Be brief."}
    async with asyncio.TaskGroup() as group:
        twins = [group.create_task(http.post("/v1/sessions", json=body)) for _ in range(4)]
        await asyncio.sleep(0.2)
        assert len(pool.appends) == 4
        pool.append_gate.set()
    answers = [twin.result() for twin in twins]
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({(answer.text, answer.headers["etag"]) for answer in answers}) == 1
    assert await everything(http) == [answers[0].json()["id"]]


@pytest.mark.parametrize("step", ["create", "append", "get", "settle"])
@pytest.mark.parametrize("done", [False, True])
async def test_a_repeat_finishes_what_broke_off(
    http: httpx2.AsyncClient,
    pool: ScriptedPool,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    done: bool,
) -> None:
    with monkeypatch.context() as patch:
        owner, name = (pool, "call") if step == "append" else (store, step)
        patch.setattr(owner, name, broken(getattr(owner, name), done=done))
        body = {"op_id": "k", "system": "Be brief."}
        first = await http.post("/v1/sessions", json=body)
        assert (first.status_code, first.json()["error"]["code"]) == (503, "store_unavailable")
    for _ in range(2):
        again = await http.post("/v1/sessions", json=body)
        assert again.status_code == 201
        assert await everything(http) == [again.json()["id"]]
    assert len(pool.seen) == 1


async def test_a_refused_system_leaves_nothing_and_blocks_nobody(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.fail_append_at = lambda count: InvalidRequest("the template has no system role") if count < 3 else None
    body = {"op_id": "k", "system": "x"}
    for _ in range(2):
        assert (await http.post("/v1/sessions", json=body)).status_code == 422
        assert await everything(http) == []
    assert [type(request) for request in pool.requests] == [Append, Forget] * 2
    assert (await http.post("/v1/sessions", json=body)).status_code == 201
    assert len(await everything(http)) == 1


async def test_kinds_do_not_share_ids(http: httpx2.AsyncClient, session_id: str) -> None:
    made = await http.post("/v1/sessions", json={"op_id": "k"})
    forked = await http.post(f"/v1/sessions/{session_id}/fork", json={"op_id": "k"})
    assert (made.status_code, forked.status_code) == (201, 201)
    assert made.json()["id"] != forked.json()["id"]


class TestTenants:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"key-a": "a", "key-b": "b"}}

    async def test_operation_ids_are_a_tenants_own(self, http: httpx2.AsyncClient) -> None:
        a, b = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
        made = [await http.post("/v1/sessions", json={"op_id": "k", "ttl_seconds": 60}, headers=a)]
        made.append(await http.post("/v1/sessions", json={"op_id": "k"}, headers=b))
        assert [answer.status_code for answer in made] == [201, 201]
        url = made[0].headers["location"]
        assert (await http.post(url + "/fork", headers=b)).status_code == 404
        assert (await http.post(url + "/fork", headers=a)).status_code == 201
