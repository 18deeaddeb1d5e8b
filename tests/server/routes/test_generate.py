"""One generation: its answer as JSON and as events, its errors, its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from server.errors import PreconditionFailed, SessionBusy, WorkerLost
from server.event_stream import Event, EventStream
from server.messages import Cancel, Generate, SamplingParams
from tests.server.routes.generations import events_of, interrupted, settled
from tests.server.scripted import RunningServer, ScriptedPool


@pytest.fixture
def url(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/generate"


async def test_json_answer(http: httpx2.AsyncClient, pool: ScriptedPool, url: str, session_id: str) -> None:
    answer = await http.post(url, json={"prompt": "Say it."})
    body = answer.json()
    assert answer.status_code == 200
    assert body.pop("id").startswith("gen_")
    assert body == {
        "object": "generation",
        "session_id": session_id,
        "text": "Hello, world.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "context_tokens": 10},
        "position": 13,
    }
    request = pool.requests[-1]
    assert isinstance(request, Generate)
    assert (request.prompt, request.sampling, request.remember) == ("Say it.", SamplingParams(), True)


async def test_every_knob_reaches_the_worker(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    sampling = {
        "max_tokens": 7,
        "temperature": 2,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "seed": -(1 << 63),
        "stop": ["\n", "語"],
        "logprobs": 0,
    }
    messages = [{"role": "user", "content": "Hi"}]
    assert (await http.post(url, json=sampling | {"remember": False, "messages": messages})).status_code == 200
    request = pool.requests[-1]
    assert isinstance(request, Generate)
    assert request.sampling.model_dump() == sampling | {"stop": ("\n", "語")}
    assert request.remember is False
    await http.post(url, json={"stop": "one"})
    request = pool.requests[-1]
    assert isinstance(request, Generate)
    assert (request.sampling.stop, request.prompt, request.messages) == (("one",), None, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 8193}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": "x" * 257}, "stop.0"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, None),
        ({"stream": "yes"}, "stream"),
        ({"n": 2}, "n"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_fields_are_named(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, body: dict[str, Any], param: str | None, stream: bool
) -> None:
    answer = await http.post(url, json={"stream": stream} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert pool.requests == []


@pytest.mark.parametrize("how", ["field", "header"])
async def test_events_come_in_order(http: httpx2.AsyncClient, url: str, session_id: str, how: str) -> None:
    headers = {"Accept": "text/event-stream"} if how == "header" else {}
    answer = await http.post(url, json={"stream": True} if how == "field" else {}, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    events = events_of(answer.text)
    generation_id = events[0][2]["generation_id"]
    assert [name for name, _, _ in events] == ["generation.started", *["generation.delta"] * 3, "generation.completed"]
    assert [identity for _, identity, _ in events] == [f"{generation_id}:{number}" for number in range(5)]
    assert [data for _, _, data in events[1:4]] == [
        {"index": 0, "text": "Hello"},
        {"index": 1, "text": ", "},
        {"index": 2, "text": "world."},
    ]
    generation = events[-1][2]["generation"]
    assert (generation["id"], generation["session_id"], generation["text"]) == (
        generation_id,
        session_id,
        "Hello, world.",
    )


async def test_deltas_are_sent_as_they_come(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    pool.gate.clear()
    async with http.stream("POST", url, json={"stream": True}) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(5):
            assert await anext(lines) == "event: generation.started"
        assert pool.sent == 0
        pool.gate.set()
        rest = [line async for line in lines]
    assert "event: generation.completed" in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_event_have_their_status(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, stream: bool
) -> None:
    pool.fail_before = SessionBusy("the session is generating")
    answer = await http.post(url, json={"stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    assert answer.json()["error"]["code"] == "session_busy"


@pytest.mark.parametrize(
    ("failure", "code"),
    [(WorkerLost("the worker died"), "worker_lost"), (RuntimeError("secret prompt"), "internal_error")],
)
async def test_errors_in_a_stream_are_its_last_event(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, failure: Exception, code: str
) -> None:
    pool.fail_after_deltas = failure
    events = events_of((await http.post(url, json={"stream": True})).text)
    assert (events[-1][0], events[-1][2]["error"]["code"]) == ("error", code)
    assert "secret" not in json.dumps(events)
    whole = await http.post(url, json={})
    assert (whole.status_code, whole.json()["error"]["code"]) == (503 if code == "worker_lost" else 500, code)
    assert "secret" not in whole.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels(
    running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, url: str, stream: bool
) -> None:
    pool.gate.clear()
    host, port = running.url.removeprefix("http://").split(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"stream": stream})
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    await settled(pool.started)
    assert not pool.closed.is_set()
    writer.close()
    await settled(pool.closed)
    assert pool.sent == 0
    assert (await http.get("/healthz")).status_code == 200


async def test_cancel_stops_a_running_generation(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    pool.gate.clear()
    async with http.stream("POST", url, json={"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        generation_id = json.loads((await anext(lines)).removeprefix("data: "))["generation_id"]
        cancelled = await http.post(f"/v1/generations/{generation_id}/cancel")
        assert cancelled.json() == {"id": generation_id, "object": "generation.cancelled", "cancelled": True}
        rest = "\n".join([line async for line in lines])
    assert '"finish_reason": "cancelled"' in rest
    pool.cancel_found = False
    assert (await http.post(f"/v1/generations/{generation_id}/cancel")).status_code == 404


async def test_the_whole_answer_has_the_etag_behind_it(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    answer = await http.post(url, json={"prompt": "a"}, headers={"If-Match": '"1-0123abcd"'})
    assert answer.headers["etag"] == '"9-89abcdef"'
    request = pool.requests[-1]
    assert isinstance(request, Generate)
    assert request.if_match == frozenset({"1-0123abcd"})
    assert request.op_id is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stale_tag_is_refused(http: httpx2.AsyncClient, pool: ScriptedPool, url: str, stream: bool) -> None:
    pool.fail_before = PreconditionFailed("the session has changed since")
    answer = await http.post(url, json={"stream": stream}, headers={"If-Match": '"1-0123abcd"'})
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "precondition_failed")


@pytest.mark.parametrize("how", ["field", "header"])
async def test_a_repeat_is_told_under_the_first_id(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, how: str
) -> None:
    body = {"prompt": "a"} | ({"op_id": "k"} if how == "field" else {})
    headers = {"Idempotency-Key": "k"} if how == "header" else {}
    first = await http.post(url, json=body, headers=headers)
    again = await http.post(url, json=body | {"stream": True}, headers=headers)
    events = events_of(again.text)
    assert events[-1][2]["generation"] == first.json()
    assert {identity.partition(":")[0] for _, identity, _ in events} == {first.json()["id"]}
    assert pool.sent == len(pool.deltas)
    both = await http.post(url, json={"op_id": "k"}, headers={"Idempotency-Key": "j"})
    assert (both.status_code, both.json()["error"]["param"]) == (422, "op_id")


async def test_a_repeat_that_runs_is_cancelled_by_its_first_id(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    pool.gate.clear()
    first = await interrupted(http, pool, url, {"op_id": "k"})
    async with http.stream("POST", url, json={"op_id": "k", "stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        assert (await http.post(f"/v1/generations/{first}/cancel")).status_code == 200
        rest = [line async for line in lines]
    assert "event: generation.completed" in rest


async def test_unknown_generations_cannot_be_cancelled(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    assert (await http.post("/v1/generations/gen_" + "0" * 32 + "/cancel")).status_code == 404
    assert not [request for request in pool.requests if isinstance(request, Cancel)]


class TestSlowReader:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"send_timeout_seconds": 0.3}

    async def test_a_client_that_never_reads_is_given_up(
        self, running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, url: str
    ) -> None:
        pool.deltas = ["x" * 65_536] * 2000
        async with http.stream("POST", url, json={"stream": True}):
            await settled(pool.closed)
        assert pool.sent < 1000
        assert (await http.get("/healthz")).status_code == 200


async def test_pings_fill_the_silence_also_before_the_first_event() -> None:
    gate, sent = asyncio.Event(), []

    async def events() -> Any:
        await gate.wait()
        yield Event("late", "{}", "gen_1:0")

    async def send(message: Any) -> None:
        sent.append(message.get("body"))
        if len(sent) == 4:
            gate.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    stream = EventStream(events(), ping_seconds=0.01, status_seconds=0.01, send_seconds=1)
    await stream({"type": "http"}, receive, send)
    assert sent[1:4] == [b": ping\n\n"] * 3
    assert sent[-2:] == [b"event: late\ndata: {}\nid: gen_1:0\n\n", b""]
