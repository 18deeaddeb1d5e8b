from __future__ import annotations

import httpx2
import pytest

from server.errors import StoreUnavailable
from server.store.embedded import EmbeddedStore
from tests.server.scripted import ScriptedPool


async def test_live_and_ready(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    assert (await http.get("/version")).json()["name"] == "palimpsest-server"


async def test_not_ready_without_a_worker(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.described = None
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"
    assert (await http.get("/healthz")).status_code == 200


async def test_not_ready_without_the_store(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: EmbeddedStore) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(EmbeddedStore, "ping", broken)
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
