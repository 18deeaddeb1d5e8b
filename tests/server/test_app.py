from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from server.errors import StoreUnavailable
from server.settings import Settings
from server.store.base import Store
from server.store.embedded import EmbeddedStore
from tests.server.scripted import ScriptedPool


async def test_unknown_paths_and_wrong_methods_have_the_error_shape(http: httpx2.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/sessions/", "/docs"):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await http.put("/v1/sessions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert (await http.get("/v1/generations/gen_1/cancel")).headers["allow"] == "POST"
    assert (await http.post("/v1/models/a/b")).headers["allow"] == "GET"
    assert "GET" in (await http.post("/openapi.json")).headers["allow"]


@pytest.mark.parametrize(
    ("accept", "problem"),
    [
        ("application/problem+json", True),
        ("application/json;q=0.5, application/problem+json", True),
        ("application/json, application/problem+json;q=0.5", False),
        ("application/problem+json;q=0", False),
        ("application/problem+json;q=high", False),
        ("*/*", False),
    ],
)
async def test_problem_details_for_those_who_prefer_them(http: httpx2.AsyncClient, accept: str, problem: bool) -> None:
    answer = await http.post("/v1/sessions", json={"ttl_seconds": 0}, headers={"Accept": accept})
    assert answer.status_code == 422
    if not problem:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "ttl_seconds must be greater than or equal to 1",
        "code": "invalid_request",
        "param": "ttl_seconds",
    }


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/sessions/none"])
async def test_every_answer_has_a_request_id(http: httpx2.AsyncClient, path: str) -> None:
    assert (await http.get(path, headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
    for strange in ("x" * 129, "two words", ""):
        given = (await http.get(path, headers={"x-request-id": strange})).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", given)


async def test_one_log_line_a_request_without_text(http: httpx2.AsyncClient, session_id: str) -> None:
    with capture_logs() as lines:
        await http.post(f"/v1/sessions/{session_id}/segments", json={"text": "TOP SECRET"})
        await http.post(f"/v1/sessions/{session_id}/generate", json={"prompt": "TOP SECRET", "stream": True})
        await http.post(f"/v1/sessions/{session_id}/segments", json={"text": "TOP SECRET", "extra": "TOP SECRET"})
        # The line of a stream is written just after its last byte.
        await asyncio.sleep(0.05)
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["path"].rpartition("/")[2] for line in requests] == ["segments", "generate", "segments"]
    assert [line["status"] for line in requests] == [200, 200, 422]
    assert (requests[0]["tokens"], requests[0]["position"]) == (10, 10)
    assert (requests[1]["completion_tokens"], requests[1]["finish_reason"]) == (3, "stop")
    assert {line["session_id"] for line in requests} == {session_id}
    assert "SECRET" not in str(lines)
    assert "Hello" not in str(lines)


async def test_a_fault_of_ours_is_an_internal_error_without_its_text(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("TOP SECRET")

    monkeypatch.setattr(EmbeddedStore, "list", broken)
    with capture_logs() as lines:
        answer = await http.get("/v1/sessions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert [line["error"] for line in lines if line["event"] == "request failed"] == ["ZeroDivisionError"]
    assert "SECRET" not in str(lines) + answer.text


class TestStoreOutOfReach:
    """From before the start until `reachable`."""

    @pytest.fixture
    def reachable(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    def store(self, settings: Settings, reachable: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> Store:
        store = EmbeddedStore(settings.data_dir)
        for name in (
            "ping",
            "create",
            "get",
            "list",
            "update",
            "delete",
            "fork",
            "load",
            "claim",
            "generation",
            "sweep",
        ):
            monkeypatch.setattr(store, name, self.guarded(getattr(store, name), reachable))
        return store

    def guarded(self, call: Callable[..., Awaitable[Any]], reachable: asyncio.Event) -> Callable[..., Awaitable[Any]]:
        async def instead(*args: Any, **kwargs: Any) -> Any:
            if not reachable.is_set():
                raise StoreUnavailable("the store does not answer")
            return await call(*args, **kwargs)

        return instead

    async def test_everything_says_so_until_it_is_back(
        self, http: httpx2.AsyncClient, reachable: asyncio.Event
    ) -> None:
        url, generation = "/v1/sessions/sess_" + "0" * 32, "/v1/generations/gen_" + "0" * 32
        answers = [
            await http.get("/readyz"),
            await http.post("/v1/sessions"),
            await http.post("/v1/sessions", json={"op_id": "k", "system": "x"}),
            await http.get("/v1/sessions"),
            await http.get(url),
            await http.patch(url, json={"metadata": {}}),
            await http.delete(url),
            await http.post(url + "/segments", json={"text": "a"}),
            await http.post(url + "/segments", content=b"a", headers={"Content-Type": "text/plain"}),
            await http.post(url + "/generate", json={}),
            await http.post(url + "/generate", json={"stream": True}),
            await http.post(url + "/fork", json={"op_id": "k"}),
            await http.get(url + "/export"),
            await http.get(url + "/memory"),
            await http.get(generation + "/events"),
            await http.post(generation + "/cancel"),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/healthz")).status_code == 200
        reachable.set()
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post("/v1/sessions", json={"op_id": "k", "system": "x"})).status_code == 201


async def test_schema_resolves_all_its_references(http: httpx2.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert names <= schema["components"]["schemas"].keys()
    assert "text/plain" in schema["paths"]["/v1/sessions/{session_id}/segments"]["post"]["requestBody"]["content"]
    assert {"ForkSession", "GenerateBody", "GenerationBody", "MessageBody"} <= names
    importing = schema["paths"]["/v1/sessions/import"]["post"]
    assert "application/octet-stream" in importing["requestBody"]["content"]
    assert {field["name"] for field in importing["parameters"]} == {"ttl_seconds", "op_id", "idempotency-key"}
    for path, media_type in (
        ("/v1/sessions/{session_id}/export", "application/octet-stream"),
        ("/v1/generations/{generation_id}/events", "text/event-stream"),
    ):
        assert list(schema["paths"][path]["get"]["responses"]["200"]["content"]) == [media_type]


class TestKeys:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"key-a": "a", "key-b": "b"}}

    async def test_a_key_is_needed(self, http: httpx2.AsyncClient) -> None:
        for headers in (
            {},
            {"Authorization": "Bearer key-c"},
            {"Authorization": "Basic key-a"},
            {"Authorization": "Bearer"},
        ):
            answer = await http.post("/v1/sessions", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/healthz")).status_code == 200

    async def test_tenants_do_not_see_each_other(self, http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
        a, b = {"Authorization": "Bearer key-a"}, {"Authorization": "bearer key-b"}
        url = (await http.post("/v1/sessions", headers=a)).headers["location"]
        assert (await http.get(url, headers=a)).status_code == 200
        assert (await http.get(url, headers=b)).status_code == 404
        assert (await http.get("/v1/sessions", headers=b)).json()["data"] == []
        pool.gate.clear()
        async with http.stream("POST", url + "/generate", json={"stream": True}, headers=a) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            cancel = "/v1/generations/" + json.loads((await anext(lines))[6:])["generation_id"] + "/cancel"
            assert (await http.post(cancel, headers=b)).status_code == 404
            assert (await http.post(cancel, headers=a)).status_code == 200
            async for _ in lines:
                pass
