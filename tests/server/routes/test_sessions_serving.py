"""Sessions of models and memories that are served, and of those that are not."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.store.base import Store
from tests.server.scripted import MANY, SERVED, ScriptedPool, record_generation


@pytest.mark.parametrize("name", ["model", "memory"])
async def test_only_what_is_served_can_be_asked_for(http: httpx2.AsyncClient, name: str) -> None:
    served = {"model": "tiny/scripted", "memory": "slots"}
    assert (await http.post("/v1/sessions", json=served)).status_code == 201
    answer = await http.post("/v1/sessions", json=served | {name: "another"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_served", name)
    assert served[name] in error["message"]


async def test_a_session_is_of_the_pair_it_asks_for(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.described = MANY
    made = (await http.post("/v1/sessions", json={"memory": "window"})).json()
    assert (made["model"], made["memory"], made["state_bytes"]) == ("tiny/scripted", "window", 2048)
    assert (await http.get(f"/v1/sessions/{made['id']}")).json() == made
    fork = (await http.post(f"/v1/sessions/{made['id']}/fork")).json()
    assert (fork["model"], fork["memory"], fork["state_bytes"]) == ("tiny/scripted", "window", 2048)
    listed = (await http.get("/v1/sessions")).json()["data"]
    assert {one["state_bytes"] for one in listed} == {2048}


@pytest.fixture
async def foreign_id(http: httpx2.AsyncClient, pool: ScriptedPool) -> str:
    """A session of a pair that was served when it was made, and is not any more."""
    pool.described = MANY
    made = await http.post("/v1/sessions", json={"model": "other/scripted"})
    pool.described = SERVED
    return str(made.json()["id"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "segments", {"text": "x"}),
        ("POST", "generate", {"prompt": "x"}),
        ("POST", "generate", {"prompt": "x", "stream": True}),
        ("POST", "generate", {"prompt": "x", "remember": False}),
        ("POST", "fork", {}),
        ("GET", "export", None),
        ("GET", "memory", None),
    ],
)
async def test_a_session_that_is_not_served_is_refused_without_asking_a_worker(
    http: httpx2.AsyncClient, pool: ScriptedPool, foreign_id: str, method: str, path: str, body: Any
) -> None:
    before = (await http.get(f"/v1/sessions/{foreign_id}")).json()
    answer = await http.request(method, f"/v1/sessions/{foreign_id}/{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "model_not_served"
    assert "infini of other/scripted" in error["message"]
    assert "slots of tiny/scripted" in error["message"]
    assert pool.requests == []
    assert (await http.get(f"/v1/sessions/{foreign_id}")).json() == before
    assert len((await http.get("/v1/sessions")).json()["data"]) == 1


async def test_generations_of_a_session_that_is_not_served_are_refused(
    http: httpx2.AsyncClient, pool: ScriptedPool, store: Store, foreign_id: str
) -> None:
    generation = await record_generation(store, foreign_id, "gen_" + "0" * 32)
    for method, path in (("GET", "events"), ("POST", "cancel")):
        answer = await http.request(method, f"/v1/generations/{generation.id}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_served")
    assert pool.requests == []


async def test_a_session_that_is_not_served_is_shown_changed_and_deleted(
    http: httpx2.AsyncClient, foreign_id: str
) -> None:
    shown = (await http.get(f"/v1/sessions/{foreign_id}")).json()
    assert (shown["memory"], shown["state_bytes"]) == ("infini", None)
    assert [one["id"] for one in (await http.get("/v1/sessions")).json()["data"]] == [foreign_id]
    changed = await http.patch(f"/v1/sessions/{foreign_id}", json={"metadata": {"a": "b"}})
    assert changed.json()["metadata"] == {"a": "b"}
    assert (await http.delete(f"/v1/sessions/{foreign_id}")).status_code == 200
    assert (await http.get(f"/v1/sessions/{foreign_id}")).status_code == 404


async def test_sessions_can_be_read_while_no_worker_is_ready(
    http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
) -> None:
    pool.described = None
    answer = await http.get(f"/v1/sessions/{session_id}")
    assert (answer.status_code, answer.json()["state_bytes"]) == (200, None)
    assert len((await http.get("/v1/sessions")).json()["data"]) == 1
    for refused in (
        await http.post("/v1/sessions"),
        await http.post(f"/v1/sessions/{session_id}/segments", json={"text": "a"}),
        await http.post(f"/v1/sessions/{session_id}/generate", json={"stream": True}),
        await http.get(f"/v1/sessions/{session_id}/memory"),
        await http.get("/v1/models"),
    ):
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
