"""Forks: what the child has of its parent, and repeats."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.store.base import JournalEntry, Store
from tests.server.routes.outages import broken
from tests.server.scripted import ScriptedPool


async def test_the_child_is_as_the_parent_until_told_otherwise(http: httpx2.AsyncClient, store: Store) -> None:
    made = await http.post("/v1/sessions", json={"metadata": {"book": "one"}, "ttl_seconds": 60})
    url, parent = made.headers["location"], made.json()["id"]
    lease = await store.acquire(parent, "tests/0/only", 60)
    await store.journal([JournalEntry(lease, 0, [1, 2, 3], "op", 1, "none")])
    child = await http.post(url + "/fork")
    body = child.json()
    assert child.status_code == 201
    assert child.headers["location"] == f"/v1/sessions/{body['id']}"
    assert body["id"] != parent
    assert (body["position"], body["metadata"]) == (4, {"book": "one"})
    assert body["expires_at"] is not None
    assert (await http.get(child.headers["location"])).headers["etag"] == child.headers["etag"]
    other = (await http.post(url + "/fork", json={"metadata": {}, "ttl_seconds": None})).json()
    assert (other["metadata"], other["expires_at"]) == ({}, None)
    assert list((await store.load(body["id"])).tail) == [1, 2, 3]


async def test_it_works_while_the_parent_generates_and_no_worker_is_asked(
    http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
) -> None:
    pool.gate.clear()
    async with http.stream("POST", f"/v1/sessions/{session_id}/generate", json={"stream": True}) as answer:
        await anext(answer.aiter_lines())
        asked = list(pool.requests)
        assert (await http.post(f"/v1/sessions/{session_id}/fork")).status_code == 201
        assert pool.requests == asked


async def test_a_repeat_gets_the_first_answer_whatever_became_of_the_parent(
    http: httpx2.AsyncClient, store: Store, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"/v1/sessions/{session_id}"
    tag = {"If-Match": (await http.get(url)).headers["etag"], "Idempotency-Key": "k"}
    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", broken(store.settle, done=False))
        assert (await http.post(url + "/fork", headers=tag)).status_code == 503
    await http.patch(url, json={"metadata": {"moved": "on"}})
    first = await http.post(url + "/fork", headers=tag)
    assert (first.status_code, first.json()["metadata"]) == (201, {})
    await http.delete(url)
    again = await http.post(url + "/fork", headers=tag)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len((await http.get("/v1/sessions")).json()["data"]) == 1


async def test_a_stale_tag_does_not_use_the_key_up(http: httpx2.AsyncClient, session_id: str) -> None:
    url, key = f"/v1/sessions/{session_id}", {"Idempotency-Key": "k"}
    assert (await http.post(url + "/fork", headers=key | {"If-Match": '"7-00000000"'})).status_code == 412
    fresh = (await http.get(url)).headers["etag"]
    assert (await http.post(url + "/fork", headers=key | {"If-Match": fresh})).status_code == 201


@pytest.mark.parametrize("body", [{"metadata": None}, {"ttl_seconds": 0}, {"system": "x"}])
async def test_bad_fields_are_named(http: httpx2.AsyncClient, session_id: str, body: dict[str, Any]) -> None:
    answer = await http.post(f"/v1/sessions/{session_id}/fork", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, next(iter(body)))
