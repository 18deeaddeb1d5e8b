"""Sessions made, shown, listed, changed and deleted, and the ETags of it."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from server.errors import WorkerLost
from server.messages import Append, Forget
from tests.server.scripted import ScriptedPool

UNKNOWN = "sess_" + "0" * 32


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
