"""Server-sent events of a generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from palimpsest import (
    Client,
    GenerationCompleted,
    GenerationDelta,
    GenerationStarted,
    InvalidRequest,
    NotFound,
    NotResumable,
    StreamBroken,
    Unavailable,
)
from palimpsest.session import SessionHandle

from tests.clients.python.script import Failure


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def session(server: Any) -> Iterator[SessionHandle]:
    with Client(server.url) as client:
        yield client.sessions.create()


def test_events_come_in_order_and_make_up_the_text(session: SessionHandle) -> None:
    events = list(session.stream(messages=[{"role": "user", "content": "ahoy there"}], max_tokens=9))
    assert events[0] == GenerationStarted("gen_1")
    deltas = [event for event in events if isinstance(event, GenerationDelta)]
    assert {delta.generation_id for delta in deltas} == {"gen_1"}
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    assert isinstance(events[-1], GenerationCompleted)
    assert events[-1].generation.text == "".join(delta.text for delta in deltas) == "echo: user: ahoy there "


SAID = ["echo: ", "a ", "b ", "c "]


def deltas(events: Iterable[object]) -> list[str]:
    """The texts of the deltas, whose indexes must run from 0 on."""
    found = [event for event in events if isinstance(event, GenerationDelta)]
    assert [delta.index for delta in found] == list(range(len(found)))
    return [delta.text for delta in found]


@pytest.mark.parametrize("ending", ["nothing", "cut", "error"])
@pytest.mark.parametrize("after", range(6))
def test_a_stream_that_breaks_goes_on_where_it_stood(
    session: SessionHandle, script: Any, ending: str, after: int
) -> None:
    script.endings.append((ending, after))
    events = list(session.stream("a b c"))
    assert [event for event in events if isinstance(event, GenerationStarted)] == [GenerationStarted("gen_1")]
    assert deltas(events) == SAID
    assert isinstance(events[-1], GenerationCompleted)
    assert len(script.generations) == 1
    assert script.texts[session.id] == "a b c"
    # Without an event nothing has a name yet: then the same is asked again.
    assert script.told == ([("gen_1", after - 1)] if after else [])


def test_the_budget_is_for_failures_in_a_row(session: SessionHandle, script: Any) -> None:
    script.endings.extend([("cut", 1)] * 5)
    script.failures.extend([Failure("resume", code="session_held")])
    assert deltas(session.stream("a b c")) == SAID
    assert [after for _, after in script.told] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ending", ["nothing", "cut"])
def test_a_stream_that_stays_broken_says_how_to_go_on(
    server: Any, session: SessionHandle, script: Any, ending: str
) -> None:
    script.endings.extend([(ending, 3), (ending, 0), (ending, 0)])
    stream = session.stream("a b c")
    seen: list[object] = []
    with pytest.raises(StreamBroken, match=r"resume\('gen_1', after=2\)") as caught:
        seen.extend(stream)
    assert (caught.value.generation_id, caught.value.after) == (stream.generation_id, stream.after) == ("gen_1", 2)
    with Client(server.url) as client:
        rest = list(client.resume("gen_1", after=2))
        whole = list(client.resume("gen_1"))
    assert [event.text for event in rest if isinstance(event, GenerationDelta)] == SAID[2:]
    assert deltas(whole) == SAID
    assert isinstance(rest[-1], GenerationCompleted)


def test_a_generation_that_is_gone_is_said_to_be(server: Any, session: SessionHandle, script: Any) -> None:
    script.endings.append(("cut", 2))
    script.forgetful = True
    with pytest.raises(NotResumable, match="remember=False"):
        list(session.stream("a b c", remember=False))
    assert len(script.told) == 1
    with Client(server.url) as client, pytest.raises(NotFound):
        list(client.resume("gen_1"))


def test_an_error_that_stays_is_raised_with_its_class(session: SessionHandle, script: Any) -> None:
    script.endings.extend([("error", 2), ("error", 0), ("error", 0)])
    with pytest.raises(Unavailable) as caught:
        list(session.stream("a"))
    assert (caught.value.status, caught.value.code) == (None, "worker_lost")


def test_a_server_that_is_away_for_long_breaks_the_stream(session: SessionHandle, server: Any) -> None:
    stream = session.stream("forever")
    next(stream)
    server.stop()
    with pytest.raises(StreamBroken) as caught:
        list(stream)
    assert not isinstance(caught.value, NotResumable)
    assert caught.value.generation_id == "gen_1"


def test_leaving_the_context_stops(session: SessionHandle, script: Any) -> None:
    with session.stream("forever") as events:
        for event in events:
            if isinstance(event, GenerationDelta):
                break
    assert eventually(lambda: script.cancelled == ["gen_1"])


def test_breaking_out_of_a_plain_loop_stops(session: SessionHandle, script: Any) -> None:
    for event in session.stream("forever"):
        if isinstance(event, GenerationDelta):
            break
    assert eventually(lambda: script.cancelled == ["gen_1"])


def test_a_refused_stream_is_asked_for_again(session: SessionHandle, script: Any) -> None:
    script.failures.extend([Failure("generate", code="overloaded"), Failure("generate", code="worker_lost")])
    assert isinstance(list(session.stream("x"))[-1], GenerationCompleted)
    script.failures.append(Failure("generate", status=422, code="invalid_request"))
    with pytest.raises(InvalidRequest):
        list(session.stream("x"))
    assert len(script.generations) == 1
