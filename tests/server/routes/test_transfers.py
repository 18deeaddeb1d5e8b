from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from server.errors import InvalidRequest, StoreUnavailable
from server.file_stream import FileStream
from server.messages import Check
from server.store.base import JournalEntry, Store
from tests.server.scripted import MANY, OFFERED, OTHERS, RunningServer, ScriptedPool, offering

FILE = {"Content-Type": "application/octet-stream"}
STATE = bytes(range(256)) * 8192


@pytest.fixture
async def exported(http: httpx2.AsyncClient, store: Store, session_id: str) -> bytes:
    """The file of a session with 5 tokens in a snapshot, 2 behind it, and an open end."""
    await http.patch(f"/v1/sessions/{session_id}", json={"metadata": {"book": "ä"}})
    lease = await store.acquire(session_id, "tests/0/only", 60)
    await store.journal([JournalEntry(lease, 0, [1, 2, 3, 4, 5], "", 0, "none")])
    await store.save_snapshot(lease, 5, STATE)
    await store.journal([JournalEntry(lease, 5, [6, 7], "open end", 2, "asked")])
    return (await http.get(f"/v1/sessions/{session_id}/export")).content


async def everything(http: httpx2.AsyncClient) -> list[str]:
    return [one["id"] for one in (await http.get("/v1/sessions")).json()["data"]]


async def upload(http: httpx2.AsyncClient, file: Any, **options: Any) -> httpx2.Response:
    options["headers"] = FILE | options.get("headers", {})
    return await http.post("/v1/sessions/import", content=file, **options)


async def test_an_export_is_a_file_to_keep(http: httpx2.AsyncClient, exported: bytes, session_id: str) -> None:
    url = f"/v1/sessions/{session_id}"
    answer = await http.get(url + "/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{session_id}.palimpsest"'
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["etag"] == (await http.get(url)).headers["etag"]


async def test_an_import_goes_on_where_the_file_ends(
    http: httpx2.AsyncClient, pool: ScriptedPool, store: Store, exported: bytes, session_id: str
) -> None:
    made = await upload(http, exported)
    body = made.json()
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/sessions/{body['id']}"
    assert body["id"] != session_id
    assert (body["position"], body["metadata"], body["expires_at"]) == (9, {"book": "ä"}, None)
    assert (await http.get(made.headers["location"])).headers["etag"] == made.headers["etag"]
    check = pool.requests[-1]
    assert isinstance(check, Check)
    assert (check.position, check.state, check.tail) == (5, STATE, (6, 7))
    theirs, ours = await store.load(session_id), await store.load(body["id"])
    assert (ours.snapshot, ours.snapshot_position, list(ours.tail)) == (STATE, 5, [6, 7])
    assert (ours.record.open_text, ours.record.open_tokens, ours.record.turn) == ("open end", 2, "asked")
    assert ours.record.journaled == theirs.record.journaled


async def test_a_session_that_has_read_nothing_travels_too(http: httpx2.AsyncClient, session_id: str) -> None:
    file = (await http.get(f"/v1/sessions/{session_id}/export")).content
    made = await upload(http, file, params={"ttl_seconds": 60})
    assert (made.status_code, made.json()["position"]) == (201, 0)
    assert made.json()["expires_at"] is not None


@pytest.mark.parametrize("how", ["query", "header"])
async def test_a_repeat_makes_no_second_session(
    http: httpx2.AsyncClient, store: Store, exported: bytes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key: dict[str, Any] = {"params": {"op_id": "k"}} if how == "query" else {"headers": {"Idempotency-Key": "k"}}

    async def broken(*_: object) -> None:
        raise StoreUnavailable("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", broken)
        assert (await upload(http, exported, **key)).status_code == 503
    first = await upload(http, exported, **key)
    await http.patch(first.headers["location"], json={"metadata": {}})
    again = await upload(http, exported, **key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len(await everything(http)) == 2
    key["params"] = key.get("params", {}) | {"ttl_seconds": 5}
    assert (await upload(http, exported, **key)).json()["error"]["code"] == "op_id_reused"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "foreign"])
async def test_a_damaged_file_stores_nothing(
    http: httpx2.AsyncClient, pool: ScriptedPool, exported: bytes, damage: str
) -> None:
    flipped = bytearray(exported)
    flipped[len(flipped) // 2] ^= 1
    files = {
        "flipped": bytes(flipped),
        "cut": exported[:-1],
        "longer": exported + b"x",
        "empty": b"",
        "foreign": b"PK\x03\x04" + bytes(100),
    }
    before = await everything(http)
    answer = await upload(http, files[damage], headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "import_refused")
    assert await everything(http) == before
    assert pool.requests == []
    assert (await upload(http, exported, headers={"Idempotency-Key": "k"})).status_code == 201


@pytest.mark.parametrize("field", ["model", "model_fingerprint", "memory"])
async def test_only_what_is_served_is_imported(
    http: httpx2.AsyncClient, pool: ScriptedPool, exported: bytes, field: str
) -> None:
    pool.described = offering(OFFERED.model_copy(update={field: "another"}))
    before = await everything(http)
    answer = await upload(http, exported)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_mismatch")
    assert await everything(http) == before
    assert pool.requests == []


async def test_what_the_worker_refuses_is_not_stored(
    http: httpx2.AsyncClient, pool: ScriptedPool, exported: bytes
) -> None:
    pool.fail_check = InvalidRequest("its numbers are not finite", code="import_refused")
    before = await everything(http)
    answer = await upload(http, exported)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "import_refused")
    assert await everything(http) == before


async def test_a_session_of_another_model_is_not_exported(
    http: httpx2.AsyncClient, pool: ScriptedPool, session_id: str
) -> None:
    pool.described = offering(OFFERED.model_copy(update={"model": "another"}))
    answer = await http.get(f"/v1/sessions/{session_id}/export")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_served")


async def test_any_served_pair_is_imported_whatever_its_place(
    http: httpx2.AsyncClient, pool: ScriptedPool, exported: bytes
) -> None:
    pool.described = offering(*OTHERS, OFFERED)
    answer = await upload(http, exported)
    assert answer.status_code == 201
    assert (answer.json()["model"], answer.json()["memory"]) == (OFFERED.model, OFFERED.memory)
    [check] = [request for request in pool.requests if isinstance(request, Check)]
    assert (check.model, check.memory) == OFFERED.pair


async def test_an_export_has_the_fingerprint_of_its_own_model(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.described = MANY
    made = await http.post("/v1/sessions", json={"model": "other/scripted"})
    file = (await http.get(f"/v1/sessions/{made.json()['id']}/export")).content
    assert (await upload(http, file)).json()["memory"] == "infini"
    altered = [offer.model_copy(update={"model_fingerprint": "02"}) for offer in OTHERS]
    pool.described = offering(OFFERED, *altered)
    answer = await upload(http, file)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_mismatch")


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
async def test_other_media_types_are_refused(http: httpx2.AsyncClient, exported: bytes, kind: str) -> None:
    answer = await upload(http, exported, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "wrong_media_type")


async def test_bad_lifetimes_are_refused(http: httpx2.AsyncClient, exported: bytes) -> None:
    answer = await upload(http, exported, params={"ttl_seconds": 0})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "ttl_seconds")


async def test_without_keys_to_sign_with_the_log_says_why(
    http: httpx2.AsyncClient, running: RunningServer, session_id: str
) -> None:
    (running.app.state.service.settings.data_dir / "export.key").write_text("damaged")
    with capture_logs() as lines:
        answer = await http.get(f"/v1/sessions/{session_id}/export")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "export.key" not in answer.text
    assert "export.key" in str([line for line in lines if line["event"] == "no export keys"])


async def test_a_draining_server_still_exports(
    running: RunningServer, http: httpx2.AsyncClient, exported: bytes, session_id: str
) -> None:
    running.app.state.service.begin_drain()
    assert (await http.get(f"/v1/sessions/{session_id}/export")).status_code == 200
    assert (await http.get("/v1/sessions")).status_code == 200
    for refused in (await upload(http, exported), await http.post(f"/v1/sessions/{session_id}/fork")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


async def test_few_files_are_held_at_once(http: httpx2.AsyncClient, exported: bytes, session_id: str) -> None:
    gate = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield exported[:100]
        await gate.wait()
        yield exported[100:]

    async with asyncio.TaskGroup() as group:
        imports = [group.create_task(upload(http, slowly())) for _ in range(4)]
        await asyncio.sleep(0.3)
        for refused in (await upload(http, exported), await http.get(f"/v1/sessions/{session_id}/export")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        gate.set()
    assert [one.result().status_code for one in imports] == [201] * 4
    for _ in range(5):
        assert (await http.get(f"/v1/sessions/{session_id}/export")).status_code == 200


class TestLimit:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"max_import_bytes": 100_000}

    async def test_a_large_file_is_refused_unread(self, running: RunningServer, http: httpx2.AsyncClient) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(400):
                yield bytes(65_536)

        answer = await upload(http, endless())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /v1/sessions/import HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        writer.write(f"{head}Content-Length: 100001\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert b" 413 " in await reader.readline()
        writer.close()


class TestKeys:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"api_keys": {"key-a": "a", "key-b": "b"}}

    async def test_files_go_from_tenant_to_tenant_but_sessions_do_not(self, http: httpx2.AsyncClient) -> None:
        a, b = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
        url = (await http.post("/v1/sessions", headers=a)).headers["location"]
        assert (await http.get(url + "/export", headers=b)).status_code == 404
        file = (await http.get(url + "/export", headers=a)).content
        made = await upload(http, file, headers=b)
        assert made.status_code == 201
        assert (await http.get(made.headers["location"], headers=a)).status_code == 404


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 2:
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    with ExitStack() as held:
        let_go = asyncio.Event()
        held.callback(let_go.set)
        stream = FileStream([b"a", b"b"], headers={}, held=held.pop_all(), send_seconds=0.05)
        assert not let_go.is_set()
        await stream({"type": "http"}, receive, send)
    assert let_go.is_set()
    assert [message.get("body") for message in sent] == [None, b"a"]
