from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.errors import StoreUnavailable
from server.store.base import Store
from server.store.embedded import EmbeddedStore
from tests.server.scripted import ScriptedPool


async def test_live_and_ready(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_version_says_where_sessions_live(
    http: httpx2.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = (await http.get("/version")).json()
    assert version.pop("version")
    assert version == {"name": "palimpsest-server", "store": "embedded", "durability": "fsync"}

    def unknown(_store: Store) -> None:
        raise StoreUnavailable("not reached yet")

    monkeypatch.setattr(type(store), "durability", property(unknown))
    assert (await http.get("/version")).json()["durability"] is None


class TestRedis:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"store": "redis+sentinel://user:SECRET@localhost:1/service/0"}

    async def test_version_tells_the_kind_and_not_the_address(self, http: httpx2.AsyncClient) -> None:
        answer = await http.get("/version")
        assert answer.json()["store"] == "redis"
        assert "SECRET" not in answer.text


async def test_not_ready_without_a_worker(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.described = None
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"
    assert (await http.get("/healthz")).status_code == 200


async def test_not_ready_without_the_store(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: EmbeddedStore) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedStore, "ping", broken)
        answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert (await http.get("/readyz")).status_code == 200
