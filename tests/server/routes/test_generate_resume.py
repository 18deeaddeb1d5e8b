"""Generations taken up again by their name."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from server.errors import SessionBusy, SessionHeld, WorkerLost
from server.messages import Cancel, Resume
from server.store.base import Finish, Store
from tests.server.routes.generations import events_of, interrupted, settled
from tests.server.scripted import RunningServer, ScriptedPool, record_generation


@pytest.fixture
def url(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/generate"


async def test_it_tells_what_is_missing_and_samples_nothing_twice(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, session_id: str
) -> None:
    whole = events_of((await http.post(url, json={"stream": True})).text)
    name = whole[0][2]["generation_id"]
    address = f"/v1/generations/{name}/events"
    assert events_of((await http.get(address)).text) == whole
    for number in range(4):
        by_header = await http.get(address, headers={"Last-Event-ID": f"{name}:{number}"})
        by_query = await http.get(address, params={"after": number})
        newer = await http.get(address, params={"after": 0}, headers={"Last-Event-ID": f"{name}:{number}"})
        assert by_header.headers["content-type"].startswith("text/event-stream")
        for answer in (by_header, by_query, newer):
            assert events_of(answer.text) == whole[number + 1 :]
    assert pool.sent == len(pool.deltas)
    request = pool.requests[-1]
    assert isinstance(request, Resume)
    assert (request.session_id, request.after) == (session_id, 3)


async def test_one_that_broke_off_goes_on(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    pool.gate.clear()
    name = await interrupted(http, pool, url)
    pool.gate.set()
    events = events_of((await http.get(f"/v1/generations/{name}/events", params={"after": 0})).text)
    assert [identity for _, identity, _ in events] == [f"{name}:{number}" for number in range(1, 5)]
    assert events[-1][2]["generation"]["text"] == "Hello, world."


async def test_going_away_interrupts_again(
    running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    pool.gate.clear()
    name = await interrupted(http, pool, url)
    pool.closed.clear()
    async with http.stream("GET", f"/v1/generations/{name}/events") as answer:
        assert await anext(answer.aiter_lines()) == "event: generation.started"
        assert not pool.closed.is_set()
    await settled(pool.closed)
    assert await running.app.state.service.wait_idle(5)


async def test_an_error_has_no_number(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    pool.fail_after_deltas = WorkerLost("the worker died")
    broken = events_of((await http.post(url, json={"stream": True})).text)
    assert [name for name, _, _ in broken[-2:]] == ["generation.delta", "error"]
    assert broken[-1][1] == ""
    pool.fail_after_deltas = None
    last = broken[-2][1]
    address = f"/v1/generations/{last.partition(':')[0]}/events"
    rest = events_of((await http.get(address, headers={"Last-Event-ID": last})).text)
    assert [name for name, _, _ in rest] == ["generation.completed"]


async def test_what_goes_wrong_first_has_its_status(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    name = (await http.post(url, json={})).json()["id"]
    for failure, status in ((SessionBusy("busy"), 409), (SessionHeld("held"), 503), (RuntimeError("secret"), 500)):
        pool.fail_before = failure
        answer = await http.get(f"/v1/generations/{name}/events")
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status != 500)
        assert "secret" not in answer.text


async def test_unknown_ones_are_not_found(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    forgotten = (await http.post(url, json={"remember": False})).json()["id"]
    asked = len(pool.requests)
    for name in (forgotten, "gen_" + "0" * 32, "gen_1", "sess_" + "0" * 32, "%00"):
        answer = await http.get(f"/v1/generations/{name}/events")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "generation_id")
        assert "remember=false" in answer.json()["error"]["message"]
    assert len(pool.requests) == asked


@pytest.mark.parametrize("last", ["7", "{name}", "{name}:", "{name}:-1", "{name}:x", "gen_1:7", "{name}:1:", ""])
async def test_other_ids_are_refused(http: httpx2.AsyncClient, url: str, last: str) -> None:
    name = (await http.post(url, json={})).json()["id"]
    headers = {"Last-Event-ID": last.format(name=name)}
    answer = await http.get(f"/v1/generations/{name}/events", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "last-event-id")


@pytest.mark.parametrize("after", ["-2", "x", str(1 << 31)])
async def test_bad_numbers_are_refused(http: httpx2.AsyncClient, url: str, after: str) -> None:
    name = (await http.post(url, json={})).json()["id"]
    answer = await http.get(f"/v1/generations/{name}/events", params={"after": after})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after")


async def test_one_that_broke_off_can_be_cancelled_and_one_that_ended_cannot(
    http: httpx2.AsyncClient, pool: ScriptedPool, store: Store, url: str, session_id: str
) -> None:
    pool.gate.clear()
    name = await interrupted(http, pool, url)
    assert (await http.post(f"/v1/generations/{name}/cancel")).status_code == 200
    assert pool.requests[-1] == Cancel(session_id=session_id, generation_id=name)
    ended = "gen_" + "e" * 32
    await record_generation(store, session_id, ended, Finish("stop", 0, 0))
    assert (await http.post(f"/v1/generations/{ended}/cancel")).status_code == 404
    assert pool.requests[-1] == Cancel(session_id=session_id, generation_id=name)


class TestKeys:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"key-a": "a", "key-b": "b"}}

    async def test_generations_are_their_tenants(self, http: httpx2.AsyncClient) -> None:
        a, b = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
        session = (await http.post("/v1/sessions", headers=a)).headers["location"]
        name = (await http.post(session + "/generate", json={}, headers=a)).json()["id"]
        assert (await http.get(f"/v1/generations/{name}/events", headers=a)).status_code == 200
        theirs = await http.get(f"/v1/generations/{name}/events", headers=b)
        nobodys = await http.get(f"/v1/generations/gen_{'0' * 32}/events", headers=b)
        assert (theirs.status_code, theirs.json()) == (404, nobodys.json())
        assert (await http.post(f"/v1/generations/{name}/cancel", headers=b)).status_code == 404
