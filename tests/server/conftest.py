"""A served app with a scripted pool behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.settings import Settings, load
from server.store.base import Store
from server.store.embedded import EmbeddedStore
from tests.server.scripted import RunningServer, ScriptedPool


@pytest.fixture
def overrides() -> dict[str, Any]:
    """Settings a test wants otherwise."""
    return {}


@pytest.fixture
def settings(tmp_path: Path, overrides: dict[str, Any]) -> Settings:
    return load(**{"port": 0, "data_dir": tmp_path / "data", "drain_seconds": 5.0} | overrides)


@pytest.fixture
async def pool() -> ScriptedPool:
    return ScriptedPool()


@pytest.fixture
def store(settings: Settings, pool: ScriptedPool) -> Store:
    """Opened by whatever runs on it."""
    pool.store = EmbeddedStore(settings.data_dir)
    return pool.store


@pytest.fixture
async def running(settings: Settings, pool: ScriptedPool, store: Store) -> AsyncGenerator[RunningServer, None]:
    server = RunningServer(settings, pool, store)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def http(running: RunningServer) -> AsyncGenerator[httpx2.AsyncClient, None]:
    async with httpx2.AsyncClient(base_url=running.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def session_id(http: httpx2.AsyncClient) -> str:
    answer = await http.post("/v1/sessions")
    assert answer.status_code == 201
    return str(answer.json()["id"])
