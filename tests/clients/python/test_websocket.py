"""A session over the WebSocket, synchronously."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from palimpsest import Client, ConnectionFailed, InvalidRequest, NotFound, SocketClosed
from palimpsest.session import SessionHandle
from palimpsest.types import Session


@pytest.fixture
def session(server: Any) -> Iterator[SessionHandle]:
    with Client(server.url) as client:
        yield client.sessions.create()


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_append_and_generate(session: SessionHandle, script: Any, encoding: Literal["msgpack", "json"]) -> None:
    with session.connect(encoding) as socket:
        assert isinstance(socket.session, Session)
        assert socket.session.id == session.id
        assert socket.append("größer", op_id="op_a").position == 6
        assert socket.append("größer", op_id="op_a").position == 6
        assert socket.append(messages=[{"role": "user", "content": "x"}]).tokens == 7
        stream = socket.generate("who?", max_tokens=3, remember=False)
        assert [delta.text for delta in stream] == ["echo: ", "who? "]
        assert stream.result is not None
        assert stream.result.text == "echo: who? "
        socket.ping()
    assert socket.closed
    assert script.texts[session.id] == "größeruser: x"
    assert script.generations[0]["max_tokens"] == 3


def test_cancel_ends_the_iteration_with_its_reason(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        stream = socket.generate("forever")
        for delta in stream:
            if delta.index == 3:
                socket.cancel()
        assert stream.result is not None
        assert stream.result.finish_reason == "cancelled"
        assert 4 <= stream.result.text.count("again") < 3000
        assert socket.append("y").tokens == 1


def test_cancel_before_the_generation_has_a_name(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        stream = socket.generate("forever")
        socket.cancel()
        assert len(list(stream)) < 3000
        assert script.cancelled == ["gen_1"]


def test_leaving_a_generation_cancels_it_and_frees_the_socket(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        for _ in socket.generate("forever"):
            break
        assert socket.append("next").tokens == 4
        assert script.cancelled == ["gen_1"]
        assert [delta.text for delta in socket.generate("on")] == ["echo: ", "on "]


def test_an_append_within_a_generation_loses_no_delta(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        texts = []
        for delta in socket.generate("one two three"):
            texts.append(delta.text)
            if delta.index == 0:
                assert socket.append("z").tokens == 1
        assert texts == ["echo: ", "one ", "two ", "three "]


def test_threads_share_a_socket_and_each_gets_its_own(session: SessionHandle, script: Any) -> None:
    results: dict[int, str] = {}

    def ask(number: int) -> None:
        stream = socket.generate(f"number {number}", remember=False)
        results[number] = "".join(delta.text for delta in stream)

    with session.connect() as socket:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert results == {number: f"echo: number {number} " for number in range(5)}


def test_an_error_answers_the_operation_and_the_socket_stays(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        script.socket_error = True
        with pytest.raises(InvalidRequest):
            socket.append("a")
        with pytest.raises(InvalidRequest):
            list(socket.generate("a"))
        script.socket_error = False
        assert socket.append("a").position == 1


@pytest.mark.parametrize(("code", "reconnect"), [(1012, True), (1013, True), (1008, False)])
def test_a_close_in_the_middle_says_whether_to_come_back(
    session: SessionHandle, script: Any, code: int, reconnect: bool
) -> None:
    script.socket_close = (code, 1)
    with session.connect() as socket:
        with pytest.raises(SocketClosed) as caught:
            list(socket.generate("a b c"))
        assert (caught.value.code, caught.value.reconnect) == (code, reconnect)
        assert socket.closed
        with pytest.raises(SocketClosed):
            socket.append("x")


def test_an_idle_socket_notices_that_the_server_went(session: SessionHandle, server: Any) -> None:
    with session.connect() as socket:
        server.stop()
        deadline = time.monotonic() + 5
        while not socket.closed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert socket.closed
    with pytest.raises(ConnectionFailed), session.connect():
        pass


def test_a_session_that_is_gone(session: SessionHandle, script: Any) -> None:
    script.sessions.clear()
    with pytest.raises(NotFound, match="no such session"), session.connect():
        pass
