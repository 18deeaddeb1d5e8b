from __future__ import annotations

import httpx2
import pytest

from server.store.base import Store
from tests.server.figures import Page
from tests.server.routes.outages import broken
from tests.server.scripted import ScriptedPool


async def figures(http: httpx2.AsyncClient) -> Page:
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return Page(answer.text)


async def test_requests_are_counted_by_route_and_status(http: httpx2.AsyncClient, session_id: str) -> None:
    for name in (session_id, session_id, "sess_none"):
        await http.get(f"/v1/sessions/{name}")
    await http.get("/nowhere/at/all")
    found = await figures(http)
    route = "/v1/sessions/{session_id}"
    assert found("palimpsest_http_requests_total", method="GET", route=route, status="200") == 2
    assert found("palimpsest_http_requests_total", method="GET", route=route, status="404") == 1
    assert found("palimpsest_http_requests_total", route="unmatched", status="404") == 1
    assert found("palimpsest_http_request_seconds_count", method="GET", route=route) == 3
    assert session_id not in (await http.get("/metrics")).text, "nothing of anybody's"


async def test_a_generation_is_timed(http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str) -> None:
    pool.gate.set()
    for _ in range(2):
        await http.post(f"/v1/sessions/{session_id}/generate", json={"prompt": "a"})
    found = await figures(http)
    assert found("palimpsest_time_to_first_token_seconds_count", process="http") == 2


async def test_a_store_that_fails_shows(
    http: httpx2.AsyncClient, store: Store, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "get", broken(store.get, done=False))
    assert (await http.get(f"/v1/sessions/{session_id}")).status_code == 503
    assert (await figures(http))("palimpsest_store_errors_total", operation="get") == 1


async def test_openmetrics_is_told_to_those_who_ask(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


class TestKeys:
    @pytest.fixture
    def overrides(self) -> dict[str, object]:
        return {"api_keys": {"secret": "somebody"}}

    async def test_no_key_is_needed(self, http: httpx2.AsyncClient) -> None:
        assert (await http.get("/v1/sessions")).status_code == 401
        assert (await figures(http))("palimpsest_workers") == 1
