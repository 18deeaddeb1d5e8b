from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from server.errors import Overloaded, PreconditionFailed
from server.pieces import PIECE_CHARACTERS
from tests.server.scripted import RunningServer, ScriptedPool

TEXT = {"Content-Type": "text/plain; charset=utf-8"}


@pytest.fixture
def url(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/segments"


async def cut(raw: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


async def test_text_is_taken_in(http: httpx2.AsyncClient, pool: ScriptedPool, url: str, session_id: str) -> None:
    answer = await http.post(url, json={"text": "a\u0000<|im_start|>é", "op_id": "op-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "remembered")
    assert answer.json() | {"tokens": 0} == {
        "object": "segment",
        "session_id": session_id,
        "op_id": "op-1",
        "tokens": 0,
        "position": 15,
        "status": "remembered",
    }
    assert pool.appends[0].text == "a\u0000<|im_start|>é"


async def test_messages_are_taken_in(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    answer = await http.post(url, json={"messages": messages}, params={"wait": "journal"})
    assert (answer.status_code, answer.json()["status"]) == (202, "journaled")
    assert [message.model_dump() for message in pool.appends[0].messages or ()] == messages
    assert pool.appends[0].wait == "journal"
    assert answer.json()["op_id"].startswith("op_")


async def test_idempotency_key_is_the_operation_id(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    for _ in range(2):
        answer = await http.post(url, json={"text": "abc"}, headers={"Idempotency-Key": "k"})
        assert (answer.json()["op_id"], answer.json()["position"]) == ("k", 3)
    differing = await http.post(url, json={"text": "a", "op_id": "j"}, headers={"Idempotency-Key": "k"})
    assert (differing.status_code, differing.json()["error"]["param"]) == (422, "op_id")


async def test_the_answer_has_the_new_etag_and_a_repeat_has_none(http: httpx2.AsyncClient, url: str) -> None:
    first = await http.post(url, json={"text": "abc", "op_id": "k"})
    assert first.headers["etag"] == '"1-0123abcd"'
    assert "etag" not in (await http.post(url, json={"text": "abc", "op_id": "k"})).headers


async def test_if_match_goes_with_the_text(http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
    await http.post(url, json={"text": "a"}, headers={"If-Match": '"1-0123abcd", "2-89abcdef"'})
    await http.post(url, json={"text": "a"}, headers={"If-Match": "*"})
    await http.post(url, json={"text": "a"}, headers={"If-Match": '"nonsense"'})
    long = ("a" * 2 * PIECE_CHARACTERS).encode()
    answer = await http.post(url, content=long, headers=TEXT | {"If-Match": '"1-0123abcd"'})
    # Its own first piece is what makes the tag stale for the second.
    assert [append.if_match for append in pool.appends] == [
        {"1-0123abcd", "2-89abcdef"},
        None,
        frozenset(),
        {"1-0123abcd"},
        None,
    ]
    assert answer.headers["etag"] == '"5-0123abcd"'


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_a_stale_tag_is_refused(http: httpx2.AsyncClient, pool: ScriptedPool, url: str, kind: str) -> None:
    pool.fail_append_at = lambda _count: PreconditionFailed("the session has changed since")
    headers = {"If-Match": '"1-0123abcd"'}
    body: dict[str, Any] = {"json": {"text": "a"}} if kind == "json" else {"content": b"a"}
    answer = await http.post(url, headers=headers if kind == "json" else headers | TEXT, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (412, "precondition_failed")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"text": ""}, "text"),
        ({"text": 5}, "text"),
        ({"text": "a", "messages": [{"role": "user", "content": "b"}]}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "b"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"text": "a", "extra": 1}, "extra"),
        ({"text": "a", "op_id": "x" * 129}, "op_id"),
        ({"text": "a", "op_id": "white space"}, "op_id"),
        ([], None),
        ("text", None),
    ],
)
async def test_bad_fields_are_named(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, body: Any, param: str | None
) -> None:
    answer = await http.post(url, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert pool.requests == []


@pytest.mark.parametrize(
    ("raw", "status", "part"),
    [
        (b'{"text": "a"', 400, "line 1, column 13"),
        (b'{\n  "text": a}', 400, "line 2, column 11"),
        (b'{"text": "\xff"}', 400, "byte 10"),
        (b'{"text": NaN}', 400, "NaN"),
        (b"[" * 50_000, 400, "deeply"),
        (b'{"text": ' + b"1" * 5000 + b"}", 400, "digits"),
        (b'{"text": "\\ud800"}', 422, "surrogate"),
        (b'{"\\ud800": "a"}', 422, "unicode"),
    ],
)
async def test_broken_json_says_where(http: httpx2.AsyncClient, url: str, raw: bytes, status: int, part: str) -> None:
    answer = await http.post(url, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert part in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind",
    ["application/xml", "text/html", "application/x-www-form-urlencoded", "text/plain; charset=latin-1", "nonsense"],
)
async def test_other_media_types_are_refused(http: httpx2.AsyncClient, url: str, kind: str) -> None:
    answer = await http.post(url, content=b'{"text": "a"}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "wrong_media_type")


async def test_json_without_a_content_type_is_refused(http: httpx2.AsyncClient, url: str) -> None:
    assert (await http.post(url, content=b'{"text": "a"}')).status_code == 415


class TestJsonLimit:
    @pytest.fixture
    def overrides(self) -> dict[str, Any]:
        return {"max_json_bytes": 2000}

    async def test_a_long_body_is_refused_unread(self, http: httpx2.AsyncClient, pool: ScriptedPool, url: str) -> None:
        raw = json.dumps({"text": "a" * 3000}).encode()
        headers = {"Content-Type": "application/json"}
        for content in (raw, cut(raw, 500)):
            answer = await http.post(url, content=content, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert pool.requests == []
        assert (await http.post(url, json={"text": "a" * 1900})).status_code == 200


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
async def test_pieces_do_not_depend_on_network_chunks(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, size: int
) -> None:
    text = ("naïve 語 😀 " * 700)[:6000] if size == 1 else ("naïve 語 😀 " * 5000)[: 2 * PIECE_CHARACTERS]
    answer = await http.post(url, content=cut(text.encode(), size), headers=TEXT | {"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["tokens"], answer.json()["op_id"]) == (200, len(text), "k")
    expected = [text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS)]
    assert [append.text for append in pool.appends] == expected
    assert [append.op_id for append in pool.appends] == [f"k/{index}" for index in range(len(expected))]
    assert [append.wait for append in pool.appends] == ["journal"] * (len(expected) - 1) + ["memory"]


async def test_a_repeat_continues_where_the_stream_stopped(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    text = "abcdefgh" * PIECE_CHARACTERS
    pool.fail_append_at = lambda count: Overloaded("too much at once") if count == 4 else None
    headers = TEXT | {"Idempotency-Key": "k"}
    broken = await http.post(url, content=text.encode(), headers=headers)
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "overloaded")
    kept = 3 * PIECE_CHARACTERS
    assert f"{kept} bytes ({kept} tokens, position {kept})" in broken.json()["error"]["message"]
    again = await http.post(url, content=text.encode(), headers=headers)
    assert (again.status_code, again.json()["position"]) == (200, len(text))


@pytest.mark.parametrize("size", [1000, 1 << 20])
async def test_invalid_utf8_says_where_and_what_is_kept(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, size: int
) -> None:
    sound = "é" * (PIECE_CHARACTERS + 50)
    raw = sound.encode() + b"\xc3\x28 and more"
    answer = await http.post(url, content=cut(raw, size), headers=TEXT)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
    assert f"byte {2 * len(sound)};" in message
    assert f"{2 * PIECE_CHARACTERS} bytes" in message
    assert [len(append.text or "") for append in pool.appends] == [PIECE_CHARACTERS]


async def test_text_cut_off_within_a_character_is_refused(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    answer = await http.post(url, content="ab語".encode()[:-1], headers=TEXT)
    assert answer.status_code == 400
    assert "byte 2" in answer.json()["error"]["message"]
    assert "nothing of the body was taken in" in answer.json()["error"]["message"]
    assert pool.requests == []


async def test_empty_text_is_refused(http: httpx2.AsyncClient, url: str) -> None:
    assert (await http.post(url, content=b"", headers=TEXT)).status_code == 422


async def test_the_body_is_read_only_as_fast_as_it_is_taken(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    handed_over = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal handed_over
        for _ in range(400):
            handed_over += 1
            yield b"x" * 65_536

    pool.append_gate.clear()
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(http.post(url, content=endless(), headers=TEXT))
        await asyncio.sleep(0.5)
        stuck_at = handed_over
        await asyncio.sleep(0.3)
        # The rest waits in the client: sockets hold a few megabytes, the server next to nothing.
        assert handed_over == stuck_at < 300
        assert len(pool.appends) == 1
        pool.append_gate.set()
        answer = await sending
    assert answer.json()["tokens"] == 400 * 65_536


async def test_a_client_that_goes_away_leaves_what_was_acknowledged(
    running: RunningServer, http: httpx2.AsyncClient, pool: ScriptedPool, url: str
) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + b"y" * (2 * PIECE_CHARACTERS + 100))
    await writer.drain()
    async with asyncio.timeout(5):
        await pool.appended.acquire()
        await pool.appended.acquire()
    writer.close()
    await asyncio.sleep(0.1)
    assert len(pool.appends) == 2
    assert (await http.post(url, json={"text": "z"})).json()["position"] == 2 * PIECE_CHARACTERS + 1


async def test_a_declared_oversize_is_refused_before_the_body(running: RunningServer, url: str) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_hundred_megabytes_of_json_leave_the_server_healthy(http: httpx2.AsyncClient, url: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(1600):
            yield b"x" * 65_536

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield chunk

    answer = await http.post(url, content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert (await http.get("/healthz")).status_code == 200
