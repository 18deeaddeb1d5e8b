"""A session over the WebSocket, synchronously."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from palimpsest import Client, ConnectionFailed, InvalidRequest, NotFound, NotResumable, SocketClosed, Unavailable
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
        script.socket_errors.extend(["invalid_request"] * 2)
        with pytest.raises(InvalidRequest):
            socket.append("a")
        with pytest.raises(InvalidRequest):
            list(socket.generate("a"))
        assert socket.append("a").position == 1


def test_a_refusal_ends_a_socket(session: SessionHandle, script: Any) -> None:
    script.socket_closes.append((1008, 2))
    with session.connect() as socket:
        with pytest.raises(SocketClosed) as caught:
            list(socket.generate("a b c"))
        assert (caught.value.code, caught.value.reconnect) == (1008, False)
        assert socket.closed
        with pytest.raises(SocketClosed):
            socket.append("x")
    assert script.told == []


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
@pytest.mark.parametrize("events", range(-1, 6))
def test_a_generation_goes_on_over_another_connection(
    session: SessionHandle, script: Any, encoding: Literal["msgpack", "json"], events: int
) -> None:
    script.socket_closes.append((1012, events))
    with session.connect(encoding) as socket:
        stream = socket.generate("a b c")
        deltas = list(stream)
    assert [delta.text for delta in deltas] == ["echo: ", "a ", "b ", "c "]
    assert [delta.index for delta in deltas] == [0, 1, 2, 3]
    assert stream.result is not None
    assert script.texts[session.id] == "a b c"
    assert len(script.generations) == 1
    assert script.told == ([("gen_1", events - 1)] if events > 0 else [])


def test_an_append_that_was_not_acknowledged_is_repeated_and_applied_once(session: SessionHandle, script: Any) -> None:
    lost: list[SocketClosed] = []
    script.socket_closes.extend([(1012, -1), (1013, -1)])
    with session.connect(on_lost=lost.append) as socket:
        assert socket.append("once").position == 4
    assert script.texts[session.id] == "once"
    assert [error.code for error in lost] == [1012, 1013]


def test_an_idle_socket_is_opened_again_when_it_is_needed(session: SessionHandle, server: Any, script: Any) -> None:
    with session.connect() as socket:
        server.stop()
        server.start()
        assert socket.append("x").position == 1
        server.stop()
        with pytest.raises(ConnectionFailed):
            socket.append("y")
        server.start()
        assert socket.append("z").position == 2


def test_threads_share_a_socket_over_its_connections(session: SessionHandle, script: Any) -> None:
    script.socket_closes.extend([(1012, 2), (1011, 1), (1012, 3), (1001, 1), (1012, -1)])
    results: dict[int, str] = {}

    def ask(number: int) -> None:
        results[number] = "".join(delta.text for delta in socket.generate(f"number {number}"))

    with session.connect(retries=20) as socket:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        assert socket.append("!").tokens == 1
        for thread in threads:
            thread.join(30)
    assert results == {number: f"echo: number {number} " for number in range(4)}
    assert sorted(script.texts[session.id]) == sorted("!" + "".join(f"number {number}" for number in range(4)))
    assert not script.socket_closes


def test_a_cancel_holds_over_another_connection(session: SessionHandle, script: Any) -> None:
    script.socket_closes.append((1012, 40))
    with session.connect() as socket:
        stream = socket.generate("forever")
        for delta in stream:
            if delta.index == 38:
                # The connection ends before the server could have heard of it.
                script.named.pop("gen_1")
                socket.cancel()
                time.sleep(0.1)
                script.named["gen_1"] = (session.id, ["again "] * 3000)
        assert stream.result is not None
        assert stream.result.finish_reason == "cancelled"
    assert script.cancelled == ["gen_1"]


def test_an_error_that_passes_is_sat_out(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        script.socket_errors.extend(["worker_lost", "worker_lost"])
        assert socket.append("x").position == 1
        script.socket_errors.append("worker_lost")
        assert len(list(socket.generate("y"))) == 2
        script.socket_errors.extend(["worker_lost"] * 3)
        with pytest.raises(Unavailable):
            socket.append("z")
    assert script.texts[session.id] == "xy"


def test_a_generation_that_is_gone_is_said_to_be(session: SessionHandle, script: Any) -> None:
    script.forgetful = True
    script.socket_closes.append((1012, 2))
    with session.connect() as socket:
        with pytest.raises(NotResumable, match="gen_1"):
            list(socket.generate("a b", remember=False))
        assert socket.append("x").position == 1


def test_the_callers_operation_is_told_again(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        first = [delta.text for delta in socket.generate("a b", op_id="op_1")]
    with session.connect() as socket:
        assert [delta.text for delta in socket.generate("a b", op_id="op_1")] == first
    assert len(script.generations) == 1


def test_a_session_deleted_meanwhile_ends_a_socket(session: SessionHandle, script: Any) -> None:
    script.socket_closes.append((1012, 2))
    with session.connect() as socket:
        stream = socket.generate("a b c")
        next(stream)
        script.sessions.clear()
        with pytest.raises(NotFound):
            list(stream)


def test_a_socket_left_stays_closed(session: SessionHandle, script: Any) -> None:
    with session.connect() as socket:
        socket.append("x")
    with pytest.raises(SocketClosed):
        socket.append("y")
    with pytest.raises(RuntimeError, match="not open"):
        session.connect().append("z")
    assert script.texts[session.id] == "x"


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
