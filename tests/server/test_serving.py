from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.server.scripted import RunningServer, ScriptedPool


async def wait_for_drain(running: RunningServer) -> None:
    running.terminate()
    async with asyncio.timeout(5):
        await running.app.state.service.draining.wait()


async def test_a_running_stream_ends_before_the_server_does(
    running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
) -> None:
    pool.gate.clear()
    url = f"/v1/sessions/{session_id}"
    async with http.stream("POST", url + "/generate", json={"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        await wait_for_drain(running)
        for refused in (
            await http.get("/readyz"),
            await http.post(url + "/segments", json={"text": "x"}),
            await http.post(url + "/segments", content=b"x", headers={"Content-Type": "text/plain"}),
            await http.post(url + "/generate", json={}),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "5"
        assert (await http.get("/healthz")).status_code == 200
        pool.gate.set()
        rest = [line async for line in lines]
    assert "event: generation.completed" in rest
    await running.stop()
    assert pool.stopped_with is not None
    assert 0 < pool.stopped_with <= 5


async def test_sockets_finish_what_runs_and_are_told_to_reconnect(
    running: RunningServer, pool: ScriptedPool, session_id: str
) -> None:
    url = f"{running.websocket_url}/v1/sessions/{session_id}/stream"
    async with connect(url, proxy=None) as busy, connect(url, proxy=None) as idle:
        await busy.recv()
        await idle.recv()
        pool.gate.clear()
        await busy.send(json.dumps({"type": "generate"}))
        await busy.send(json.dumps({"type": "append", "op_id": "late", "text": "x"}))
        await busy.recv()
        await wait_for_drain(running)
        with pytest.raises(ConnectionClosed) as closed:
            await idle.recv()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1012
        async with connect(url, proxy=None) as late:
            assert json.loads(await late.recv())["error"]["code"] == "draining"
        pool.gate.set()
        records: list[dict[str, Any]] = []
        while not records or records[-1]["type"] != "error":
            records.append(json.loads(await busy.recv()))
        await busy.wait_closed()
        assert busy.close_code == 1012
    assert [record["type"] for record in records[-2:]] == ["generation.completed", "error"]
    assert (records[-1]["op_id"], records[-1]["error"]["code"]) == ("late", "draining")
    assert pool.appends == []


class TestImpatience:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"drain_seconds": 0.3}

    async def test_the_drain_has_an_end_and_what_breaks_off_says_so(
        self, running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
    ) -> None:
        pool.gate.clear()
        began = time.monotonic()
        async with http.stream("POST", f"/v1/sessions/{session_id}/generate", json={"stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            await running.stop()
            rest = "".join([line async for line in lines])
        assert "event: error" in rest
        assert '"code": "draining"' in rest
        assert pool.stopped_with == 0
        assert time.monotonic() - began < 4


async def test_sigterm_begins_the_drain(running: RunningServer) -> None:
    # Handled by uvicorn while it serves; taken back here so that it is not raised again at the end.
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await running.app.state.service.draining.wait()
    running.server._captured_signals.clear()
