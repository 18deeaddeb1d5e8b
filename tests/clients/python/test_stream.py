"""Server-sent events of a generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from palimpsest import (
    Client,
    GenerationCompleted,
    GenerationDelta,
    GenerationStarted,
    StreamBroken,
    Unavailable,
)
from palimpsest.session import SessionHandle


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


@pytest.mark.parametrize("ending", ["nothing", "cut"])
def test_an_end_without_completion_is_an_error(session: SessionHandle, script: Any, ending: str) -> None:
    script.sse_ending = ending
    seen: list[object] = []
    with pytest.raises(StreamBroken):
        seen.extend(session.stream("x"))
    assert isinstance(seen[0], GenerationStarted)
    assert len(seen) >= 2


def test_an_error_event_is_raised_with_its_class(session: SessionHandle, script: Any) -> None:
    script.sse_ending = "error"
    with pytest.raises(Unavailable) as caught:
        list(session.stream("x"))
    assert (caught.value.status, caught.value.code) == (None, "worker_lost")


def test_leaving_the_context_cancels(session: SessionHandle, script: Any) -> None:
    with session.stream("forever") as events:
        for event in events:
            if isinstance(event, GenerationDelta):
                break
    assert eventually(lambda: script.cancelled == ["gen_1"])


def test_breaking_out_of_a_plain_loop_cancels(session: SessionHandle, script: Any) -> None:
    for event in session.stream("forever"):
        if isinstance(event, GenerationDelta):
            break
    assert eventually(lambda: script.cancelled == ["gen_1"])


def test_a_refused_stream_is_asked_again_before_it_begins(session: SessionHandle, script: Any, failure: Any) -> None:
    script.failures.append(failure("generate", code="overloaded"))
    assert isinstance(list(session.stream("x"))[-1], GenerationCompleted)
    script.failures.append(failure("generate", code="worker_lost"))
    with pytest.raises(Unavailable):
        list(session.stream("x"))
    assert len(script.generations) == 1
