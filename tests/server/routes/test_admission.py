"""A server that has enough to do says so at once, and does what it has begun."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from server.settings import Settings
from tests.server.figures import Page
from tests.server.scripted import RunningServer, ScriptedPool


def generating(http: httpx2.AsyncClient, session_id: str, key: str | None = None) -> asyncio.Task[httpx2.Response]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return asyncio.ensure_future(
        http.post(f"/v1/sessions/{session_id}/generate", json={"prompt": "a"}, headers=headers)
    )


class TestQueue:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"max_waiting": 1}  # the scripted workers have one place

    async def test_beyond_the_queue_everything_is_refused_and_nothing_done(
        self, http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
    ) -> None:
        pool.gate.clear()
        other = (await http.post("/v1/sessions")).json()["id"]
        running = [generating(http, one) for one in (session_id, other)]
        while len(pool.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert Page((await http.get("/metrics")).text)("palimpsest_requests_under_way") == 2
        segments = f"/v1/sessions/{session_id}/segments"
        for refused in (
            await http.post(segments, json={"text": "b"}),
            await http.post(segments, content=b"b", headers={"content-type": "text/plain"}),
            await generating(http, session_id),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "2"
        assert len(pool.requests) == 2
        assert (await http.get(f"/v1/sessions/{session_id}")).status_code == 200, "what costs nothing is answered"
        pool.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
        assert (await http.post(segments, json={"text": "b"})).status_code == 200
        assert Page((await http.get("/metrics")).text)("palimpsest_requests_under_way") == 0


class TestTenants:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"first": "one", "second": "two"}, "max_requests_per_tenant": 1}

    async def test_one_tenant_s_requests_leave_the_others_theirs(
        self, running: RunningServer, pool: ScriptedPool
    ) -> None:
        async with httpx2.AsyncClient(base_url=running.url, timeout=20, trust_env=False) as http:
            names = {}
            for key in ("first", "second"):
                answer = await http.post("/v1/sessions", headers={"authorization": f"Bearer {key}"})
                names[key] = answer.json()["id"]
            pool.gate.clear()
            begun = [generating(http, names["first"], "first")]
            await pool.started.wait()
            refused = await generating(http, names["first"], "first")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert refused.headers["retry-after"] == "1"
            begun.append(generating(http, names["second"], "second"))
            pool.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(*begun)} == {200}
            assert (await generating(http, names["first"], "first")).status_code == 200


def test_the_queue_is_long_enough_for_many_sockets(settings: Settings) -> None:
    assert settings.max_waiting >= 256
    assert settings.max_requests_per_tenant == 0
