from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from server.errors import InvalidRequest, StoreUnavailable, WorkerLost
from server.messages import Append, Forget
from server.store.base import JournalEntry, Store
from tests.server.scripted import MANY, SERVED, ScriptedPool, record_generation

UNKNOWN = "sess_" + "0" * 32


def broken(call: Callable[..., Awaitable[Any]], *, done: bool) -> Callable[..., Awaitable[Any]]:
    """Fails as if the store were out of reach, before or after it was done."""

    async def instead(*args: Any, **kwargs: Any) -> Any:
        if done:
            await call(*args, **kwargs)
        raise StoreUnavailable("the store does not answer")

    return instead


async def test_create_answers_the_session_and_where_it_is(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/sessions", json={"metadata": {"book": "Ä\u0000"}, "ttl_seconds": 60})
    body = answer.json()
    assert answer.status_code == 201
    assert re.fullmatch(r"sess_[0-9a-f]{32}", body["id"])
    assert answer.headers["location"] == f"/v1/sessions/{body['id']}"
    assert re.fullmatch(r'"1-[0-9a-f]{8}"', answer.headers["etag"])
    assert body["object"] == "session"
    assert (body["model"], body["memory"], body["state_bytes"], body["position"]) == ("tiny/scripted", "slots", 4096, 0)
    assert body["metadata"] == {"book": "Ä\u0000"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["created_at"])
    assert body["expires_at"] > body["created_at"]
    assert (await http.get(answer.headers["location"])).json() == body


async def test_a_session_without_lifetime_says_so(http: httpx2.AsyncClient, session_id: str) -> None:
    assert (await http.get(f"/v1/sessions/{session_id}")).json()["expires_at"] is None


async def test_system_becomes_the_first_message(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    answer = await http.post("/v1/sessions", json={"system": "Be brief."})
    assert answer.status_code == 201
    append = pool.appends[0]
    assert append.session_id == answer.json()["id"]
    assert append.messages is not None
    assert (append.messages[0].role, append.messages[0].content) == ("system", "Be brief.")


async def test_a_system_that_cannot_be_taken_leaves_no_session(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.fail_append_at = lambda _count: WorkerLost("the worker died")
    assert (await http.post("/v1/sessions", json={"system": "Be brief."})).status_code == 503
    assert (await http.get("/v1/sessions")).json()["data"] == []
    assert isinstance(pool.requests[-1], Forget)


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


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": "60"}, "ttl_seconds"),
        ({"ttl_seconds": True}, "ttl_seconds"),
        ({"ttl_seconds": 1 << 40}, "ttl_seconds"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 65 + ".[key]"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": None}, "metadata"),
        ({"system": ""}, "system"),
        ({"modle": "x"}, "modle"),
    ],
)
async def test_bad_fields_are_named(http: httpx2.AsyncClient, body: dict[str, Any], param: str) -> None:
    answer = await http.post("/v1/sessions", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert (await http.get("/v1/sessions")).json()["data"] == []


async def test_list_pages_through_in_both_orders(http: httpx2.AsyncClient) -> None:
    made = [(await http.post("/v1/sessions")).json()["id"] for _ in range(5)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        first = (await http.get("/v1/sessions", params={"limit": 3, "order": order})).json()
        assert [one["id"] for one in first["data"]] == expected[:3]
        assert (first["object"], first["has_more"], first["first_id"]) == ("list", True, expected[0])
        query = {"limit": 3, "order": order, "after": first["last_id"]}
        second = (await http.get("/v1/sessions", params=query)).json()
        assert [one["id"] for one in second["data"]] == expected[3:]
        assert second["has_more"] is False


async def test_an_empty_list_has_no_ends(http: httpx2.AsyncClient) -> None:
    body = (await http.get("/v1/sessions")).json()
    assert body == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order"), ({"after": "x"}, "after")],
)
async def test_bad_queries_are_named(http: httpx2.AsyncClient, query: dict[str, str], param: str) -> None:
    answer = await http.get("/v1/sessions", params=query)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param


async def test_patch_changes_what_it_names(http: httpx2.AsyncClient) -> None:
    made = await http.post("/v1/sessions", json={"metadata": {"a": "1", "b": "2"}, "ttl_seconds": 60})
    url = made.headers["location"]
    renamed = await http.patch(url, json={"metadata": {"a": "3"}})
    assert renamed.json()["metadata"] == {"a": "3"}
    assert renamed.json()["expires_at"] is not None
    assert renamed.headers["etag"] != made.headers["etag"]
    kept = await http.patch(url, json={"ttl_seconds": None})
    assert (kept.json()["expires_at"], kept.json()["metadata"]) == (None, {"a": "3"})


async def test_patch_of_nothing_is_refused(http: httpx2.AsyncClient, session_id: str) -> None:
    assert (await http.patch(f"/v1/sessions/{session_id}", json={})).status_code == 422


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ('"{now}"', 200),
        ("*", 200),
        ('"7-01234567", "{now}"', 200),
        ('"1-00000000"', 412),
        ('W/"{now}"', 412),
        ("{now}", 412),
        ('"1"', 412),
        ("", 412),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "DELETE", "POST"])
async def test_if_match_decides_whether_anything_happens(
    http: httpx2.AsyncClient, session_id: str, method: str, tag: str, status: int
) -> None:
    url = f"/v1/sessions/{session_id}"
    now = (await http.get(url)).headers["etag"].strip('"')
    body: dict[str, Any] = {} if method == "DELETE" else {"json": {"metadata": {"a": "b"}}}
    answer = await http.request(
        method, url + ("/fork" if method == "POST" else ""), headers={"If-Match": tag.format(now=now)}, **body
    )
    if status == 412:
        assert (answer.status_code, answer.json()["error"]["code"]) == (412, "precondition_failed")
        assert [one["metadata"] for one in (await http.get("/v1/sessions")).json()["data"]] == [{}]
    else:
        assert answer.is_success
        assert {} not in [
            one["metadata"] for one in (await http.get("/v1/sessions", params={"limit": 1})).json()["data"]
        ]


async def test_every_change_has_a_new_etag_and_answers_agree_on_it(http: httpx2.AsyncClient) -> None:
    made = await http.post("/v1/sessions")
    url = made.headers["location"]
    assert (await http.get(url)).headers["etag"] == made.headers["etag"]
    patched = await http.patch(url, json={"metadata": {"a": "b"}}, headers={"If-Match": made.headers["etag"]})
    assert patched.headers["etag"] != made.headers["etag"]
    stale = await http.patch(url, json={"metadata": {}}, headers={"If-Match": made.headers["etag"]})
    assert stale.status_code == 412
    assert (await http.get(url)).headers["etag"] == patched.headers["etag"]


class TestIdempotency:
    """Of what makes a session."""

    async def everything(self, http: httpx2.AsyncClient) -> list[str]:
        return [one["id"] for one in (await http.get("/v1/sessions")).json()["data"]]

    @pytest.mark.parametrize("how", ["field", "header"])
    async def test_a_repeat_gets_the_first_answer(self, http: httpx2.AsyncClient, pool: ScriptedPool, how: str) -> None:
        body: dict[str, Any] = {"system": "Be brief.", "metadata": {"a": "ä"}, "ttl_seconds": 60}
        headers = {"Idempotency-Key": "k"} if how == "header" else {}
        body |= {} if how == "header" else {"op_id": "k"}
        first = await http.post("/v1/sessions", json=body, headers=headers)
        await http.patch(first.headers["location"], json={"metadata": {"a": "changed"}})
        again = await http.post("/v1/sessions", json=body, headers=headers)
        assert (again.status_code, again.json()) == (201, first.json())
        for name in ("etag", "location"):
            assert again.headers[name] == first.headers[name]
        assert await self.everything(http) == [first.json()["id"]]
        assert len(pool.appends) == 1

    async def test_another_body_or_two_ids_are_refused(self, http: httpx2.AsyncClient) -> None:
        await http.post("/v1/sessions", json={"op_id": "k"})
        other = await http.post("/v1/sessions", json={"op_id": "k", "system": "x"})
        assert (other.status_code, other.json()["error"]["code"]) == (422, "op_id_reused")
        both = await http.post("/v1/sessions", json={"op_id": "k"}, headers={"Idempotency-Key": "j"})
        assert (both.status_code, both.json()["error"]["param"]) == (422, "op_id")
        assert (await http.post("/v1/sessions", json={"op_id": "two words"})).json()["error"]["param"] == "op_id"
        assert len(await self.everything(http)) == 1

    async def test_two_at_the_same_time_make_one(self, http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
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
        assert await self.everything(http) == [answers[0].json()["id"]]

    @pytest.mark.parametrize("step", ["create", "append", "get", "settle"])
    @pytest.mark.parametrize("done", [False, True])
    async def test_a_repeat_finishes_what_broke_off(
        self,
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
            assert await self.everything(http) == [again.json()["id"]]
        assert len(pool.seen) == 1

    async def test_a_refused_system_leaves_nothing_and_blocks_nobody(
        self, http: httpx2.AsyncClient, pool: ScriptedPool
    ) -> None:
        pool.fail_append_at = lambda count: InvalidRequest("the template has no system role") if count < 3 else None
        body = {"op_id": "k", "system": "x"}
        for _ in range(2):
            assert (await http.post("/v1/sessions", json=body)).status_code == 422
            assert await self.everything(http) == []
        assert [type(request) for request in pool.requests] == [Append, Forget] * 2
        assert (await http.post("/v1/sessions", json=body)).status_code == 201
        assert len(await self.everything(http)) == 1

    async def test_kinds_do_not_share_ids(self, http: httpx2.AsyncClient, session_id: str) -> None:
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


class TestFork:
    async def test_the_child_is_as_the_parent_until_told_otherwise(
        self, http: httpx2.AsyncClient, store: Store
    ) -> None:
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
        self, http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
    ) -> None:
        pool.gate.clear()
        async with http.stream("POST", f"/v1/sessions/{session_id}/generate", json={"stream": True}) as answer:
            await anext(answer.aiter_lines())
            asked = list(pool.requests)
            assert (await http.post(f"/v1/sessions/{session_id}/fork")).status_code == 201
            assert pool.requests == asked

    async def test_a_repeat_gets_the_first_answer_whatever_became_of_the_parent(
        self, http: httpx2.AsyncClient, store: Store, session_id: str, monkeypatch: pytest.MonkeyPatch
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

    async def test_a_stale_tag_does_not_use_the_key_up(self, http: httpx2.AsyncClient, session_id: str) -> None:
        url, key = f"/v1/sessions/{session_id}", {"Idempotency-Key": "k"}
        assert (await http.post(url + "/fork", headers=key | {"If-Match": '"7-00000000"'})).status_code == 412
        fresh = (await http.get(url)).headers["etag"]
        assert (await http.post(url + "/fork", headers=key | {"If-Match": fresh})).status_code == 201

    @pytest.mark.parametrize("body", [{"metadata": None}, {"ttl_seconds": 0}, {"system": "x"}])
    async def test_bad_fields_are_named(self, http: httpx2.AsyncClient, session_id: str, body: dict[str, Any]) -> None:
        answer = await http.post(f"/v1/sessions/{session_id}/fork", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, next(iter(body)))


async def test_delete_forgets_everywhere(http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str) -> None:
    answer = await http.delete(f"/v1/sessions/{session_id}")
    assert answer.json() == {"id": session_id, "object": "session.deleted", "deleted": True}
    assert pool.requests == [Forget(session_id=session_id)]
    assert (await http.get(f"/v1/sessions/{session_id}")).status_code == 404
    assert (await http.delete(f"/v1/sessions/{session_id}")).status_code == 404


@pytest.mark.parametrize("name", [UNKNOWN, "sess_1", "gen_" + "0" * 32, "%00", "..%2f..", UNKNOWN.upper()])
async def test_unknown_sessions_are_not_found_anywhere(http: httpx2.AsyncClient, pool: ScriptedPool, name: str) -> None:
    url = f"/v1/sessions/{name}"
    for answer in (
        await http.get(url),
        await http.patch(url, json={"metadata": {}}),
        await http.delete(url),
        await http.post(url + "/segments", json={"text": "a"}),
        await http.post(url + "/segments", content=b"a", headers={"Content-Type": "text/plain"}),
        await http.post(url + "/generate", json={}),
        await http.post(url + "/generate", json={"stream": True}),
        await http.post(url + "/fork"),
        await http.get(url + "/export"),
        await http.get(url + "/memory"),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
    assert not [request for request in pool.requests if isinstance(request, Append)]


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
