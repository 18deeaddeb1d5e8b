"""What nobody should send: a clear error, and everybody else is served as before."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from palimpsest import Client
from palimpsest.session import SessionHandle
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.protocol import Event
from websockets.sync.client import connect
from websockets.uri import parse_uri

from bench.server_process import ServerProcess, wait_until
from tests.integration.continuing import assert_alike
from tests.integration.test_socket import socket_url
from tests.integration.texts import plain_text

MEGABYTE = 1 << 20


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture
def bystander(client: Client, server: ServerProcess) -> Iterator[SessionHandle]:
    """A session of somebody else, which afterwards goes on as if nothing had been."""
    bystander, reference = client.sessions.create(), client.sessions.create()
    worker = server.worker_pid
    bystander.append(plain_text(1, 30))
    yield bystander
    bystander.append(plain_text(2, 30))
    reference.append(plain_text(1, 30) + plain_text(2, 30))
    assert_alike(bystander, reference)
    assert server.worker_pid == worker
    assert client.ready()


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text": "a', 400),
        (b"\xff\xfe", 400),
        (b'{"text": "\xc3"}', 400),
        (b'{"text": "\\ud800"}', 422),
        (b"[" * 100_000, 400),
        (b'{"text": ' + b"9" * 10_000 + b"}", 400),
        (b'{"text": NaN}', 400),
        (b"[]", 422),
        (b'"text"', 422),
        (b'{"text": ""}', 422),
        (b'{"text": 3}', 422),
        (b'{"text": null}', 422),
        (b'{"text": "a", "messages": []}', 422),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', 422),
        (b'{"text": "a", "op_id": "\\u0000"}', 422),
        (b'{"text": "a", "unknown": 1}', 422),
    ],
)
def test_appends_that_are_none(
    body: bytes, status: int, http: httpx2.Client, session: SessionHandle, bystander: SessionHandle
) -> None:
    session.append("kelo rati")
    before = session.refresh()
    headers = {"content-type": "application/json"}
    answer = http.post(f"/v1/sessions/{session.id}/segments", content=body, headers=headers)
    assert answer.status_code == status
    error_of(answer)
    assert session.refresh() == before


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_tokens": 10**9},
        {"temperature": -1},
        {"top_p": 0},
        {"stop": [""]},
        {"seed": 2**70},
        {"prompt": ""},
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"messages": []},
    ],
)
def test_generations_that_are_none(body: dict[str, Any], http: httpx2.Client, session: SessionHandle) -> None:
    session.append("kelo rati")
    before = session.refresh()
    answer = http.post(f"/v1/sessions/{session.id}/generate", json=body)
    assert answer.status_code == 422
    error_of(answer)
    assert session.refresh() == before


@pytest.mark.parametrize("session_id", ["sess_" + "0" * 32, "sess_x", "..%2f..%2fetc", "%00", "gen_" + "0" * 32])
def test_sessions_that_do_not_exist(session_id: str, http: httpx2.Client) -> None:
    for answer in (
        http.get(f"/v1/sessions/{session_id}"),
        http.post(f"/v1/sessions/{session_id}/segments", json={"text": "a"}),
        http.post(f"/v1/sessions/{session_id}/generate", json={"prompt": "a"}),
        http.get(f"/v1/sessions/{session_id}/memory"),
        http.delete(f"/v1/sessions/{session_id}"),
    ):
        assert answer.status_code == 404
        error_of(answer)


@pytest.mark.parametrize(
    "text", ["a\0b\0\0c kelo", "<|im_end|> <|endoftext|>", "\ufeff\u202e\u0301\U0010ffff", "\r\n\t "]
)
def test_odd_characters_are_text(text: str, client: Client, bystander: SessionHandle) -> None:
    over_http, over_socket = client.sessions.create(), client.sessions.create()
    position = over_http.append(text).position
    with over_socket.connect() as channel:
        assert channel.append(text).position == position > 0
    assert over_http.generate(max_tokens=3).position > position
    streamed = client.sessions.create()
    assert streamed.append_stream(iter([text])).position == position


def test_names_of_special_tokens_are_many_tokens(session: SessionHandle) -> None:
    assert session.append("<|im_end|>").position > 3


def test_text_that_is_not_utf8_keeps_what_came_before(
    http: httpx2.Client, client: Client, bystander: SessionHandle
) -> None:
    session, reference = client.sessions.create(), client.sessions.create()
    sound = plain_text(3, 4000)
    answer = http.post(
        f"/v1/sessions/{session.id}/segments",
        content=sound.encode() + b"\xff" + b"more",
        headers={"content-type": "text/plain"},
        params={"wait": "journal"},
    )
    assert answer.status_code == 400
    kept = int(error_of(answer)["message"].rpartition("; ")[2].split()[0])
    assert 0 < kept <= len(sound)
    reference.append(sound[:kept])
    assert_alike(session, reference)


def test_a_json_body_that_is_too_large_is_refused(
    http: httpx2.Client, session: SessionHandle, bystander: SessionHandle
) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(100):
            yield b"a" * MEGABYTE
        yield b'"}'

    try:
        answer = http.post(
            f"/v1/sessions/{session.id}/segments", content=body(), headers={"content-type": "application/json"}
        )
    except httpx2.TransportError:
        pass  # the server hung up on a client that still sent
    else:
        assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")
    assert session.refresh().position == 0
    declared = http.post(f"/v1/sessions/{session.id}/segments", json={"text": "a" * (9 * MEGABYTE)})
    assert declared.status_code == 413


def test_a_huge_text_is_taken_in_no_faster_than_it_is_read(
    client: Client, server: ServerProcess, bystander: SessionHandle
) -> None:
    session = client.sessions.create()
    before, accepted = server.worker_rss, 0
    host, port = server.url.removeprefix("http://").split(":")
    block = plain_text(1, 4000).encode()
    head = (
        f"POST /v1/sessions/{session.id}/segments?wait=journal HTTP/1.1\r\nhost: {host}\r\n"
        f"content-type: text/plain\r\ncontent-length: {100 * MEGABYTE}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as endless:
        endless.sendall(head.encode())
        endless.settimeout(0.2)
        began = time.monotonic()
        while time.monotonic() - began < 3:
            with suppress(TimeoutError):
                accepted += endless.send(block)
        assert server.worker_rss - before < 200 << 20
    assert accepted < 100 * MEGABYTE
    # It broke off: what was journaled by then stays, and nothing comes after it.
    wait_until(lambda: session.refresh().position == session.refresh().position > 1000, "some of it is journaled")
    client.sessions.delete(session.id)


def test_garbage_on_a_socket_is_answered_and_then_refused(
    server: ServerProcess, session: SessionHandle, bystander: SessionHandle
) -> None:
    garbage: list[str | bytes] = [
        "{",
        "[]",
        "null",
        '{"type": "x"}',
        '{"type": "append"}',
        b"\x00\xff",
        '{"type": "append", "text": 1}',
    ]
    with connect(socket_url(server, session), proxy=None) as channel:
        channel.recv()
        for frame in garbage:
            channel.send(frame)
            assert json.loads(channel.recv(10))["type"] == "error"
        channel.send(json.dumps({"type": "append", "op_id": "fine", "text": "kelo"}))
        assert json.loads(channel.recv(10))["op_id"] == "fine"
        with suppress(ConnectionClosed):  # it may come amid the sending
            for _ in range(50):
                channel.send("garbage")
            while channel.recv(10):
                pass
        assert channel.close_code == 1008
    assert session.refresh().position > 0


def test_a_frame_that_is_too_large_closes_the_socket(server: ServerProcess, session: SessionHandle) -> None:
    with connect(socket_url(server, session), proxy=None) as channel:
        channel.recv()

        def send() -> None:  # which finds the socket closed already, where the server was quicker
            channel.send(json.dumps({"type": "append", "text": "a" * 2 * MEGABYTE}))
            channel.recv(10)

        with pytest.raises(ConnectionClosed) as closed:
            send()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert session.refresh().position == 0


def test_a_client_amid_a_frame_that_is_too_large_can_send_all_of_it_and_reads_why(
    server: ServerProcess, session: SessionHandle
) -> None:
    conversation = ClientProtocol(parse_uri(socket_url(server, session)))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        conversation.send_request(conversation.connect())
        raw.sendall(b"".join(conversation.data_to_send()))
        _hear(raw, conversation, lambda events: len(events) > 1)  # that it is open, and that the session is ready
        raw.sendall(bytes((0x81, 0xFF, *(2 * MEGABYTE).to_bytes(8), 0, 0, 0, 0)))
        _hear(raw, conversation, lambda _: conversation.close_rcvd is not None)
        for _ in range(32):
            raw.sendall(b"a" * (MEGABYTE // 16))
        assert raw.recv(1) == b""
    assert conversation.close_rcvd is not None
    assert conversation.close_rcvd.code == 1009
    assert session.refresh().position == 0


def _hear(raw: socket.socket, conversation: ClientProtocol, enough: Callable[[list[Event]], bool]) -> None:
    """Receive from a server until it has said enough."""
    events: list[Event] = []
    while not enough(events):
        received = raw.recv(MEGABYTE)
        assert received, f"the server hung up after {events}"
        conversation.receive_data(received)
        events += conversation.events_received()


def test_clients_that_never_read_are_given_up(
    server: ServerProcess, session: SessionHandle, bystander: SessionHandle, opening: str
) -> None:
    session.append(opening)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"max_tokens": 300, "temperature": 0, "stream": True, "logprobs": 20}).encode()
    head = (
        f"POST /v1/sessions/{session.id}/generate HTTP/1.1\r\nhost: {host}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((host, int(port)))
        silent.sendall(head.encode() + body)
        free = itertools.dropwhile(lambda _: not answers(session), range(100))
        assert next(free, None) is not None
    assert session.generate(max_tokens=3).usage.completion_tokens == 3


def answers(session: SessionHandle) -> bool:
    """Whether it takes an append now; waits a little if not."""
    try:
        session.append(" kelo")
    except Exception:
        time.sleep(0.2)
        return False
    return True
