"""How a server ends, and begins again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from palimpsest import Client, GenerationCompleted, GenerationStarted
from palimpsest.errors import Unavailable
from palimpsest.session import SessionHandle
from palimpsest.types import Generation, Message

from tests.integration.conftest import StartServer
from tests.integration.continuing import assert_alike
from tests.integration.stored import stored_session

QUESTION: Message = {"role": "user", "content": "Kelo rati?"}


def test_sigterm_lets_generations_end_and_saves_everything(
    client: Client, start_server: StartServer, opening: str
) -> None:
    mine, reference = start_server(idle_seconds=60), client.sessions.create()
    with mine.client() as first:
        session = first.sessions.create()
        session.append(messages=[QUESTION])
        session.generate(max_tokens=5, temperature=0)
        session.append(opening)
        events = session.stream(max_tokens=200, temperature=0)
        assert isinstance(next(events), GenerationStarted)
        mine.send_term()
        last = list(events)[-1]
    assert isinstance(last, GenerationCompleted)
    assert last.generation.finish_reason != "cancelled"
    assert mine.wait() == 0
    assert "Traceback" not in mine.output
    assert "Fatal" not in mine.output
    stored = stored_session(mine.data_dir, session.id)
    assert stored.snapshot_position == stored.record.journaled == last.generation.position
    assert not stored.tail
    mine.start()
    with mine.client() as second:
        again = second.sessions.get(session.id)
        assert go_on(again).position > last.generation.position
        reference.append(messages=[QUESTION])
        reference.generate(max_tokens=5, temperature=0)
        reference.append(opening)
        reference.generate(max_tokens=200, temperature=0)
        go_on(reference)
        assert_alike(again, reference)


def go_on(session: SessionHandle) -> Generation:
    return session.generate(messages=[QUESTION], max_tokens=10, temperature=0)


def test_an_append_that_waits_to_be_read_does_not_hold_up_the_end(start_server: StartServer) -> None:
    mine = start_server(drain_seconds=0.5, idle_seconds=60)
    with mine.client() as client, ThreadPoolExecutor(1) as threads:
        session = client.sessions.create()
        waiting = threads.submit(session.append, "kelo rati nura seti. " * 8000, op_id="one")
        while session.refresh().position == 0:
            pass
        begun = session.info.position
        mine.send_term()
        assert mine.wait() == 0
        refusal = waiting.exception()
        assert isinstance(refusal, Unavailable)
        assert refusal.code == "draining"
    assert "Traceback" not in mine.output
    mine.start()
    with mine.client() as client:
        again = client.sessions.get(session.id)
        answer = again.append("kelo rati nura seti. " * 8000, op_id="one")
        assert answer.position == again.refresh().position == begun


def test_a_model_that_cannot_be_loaded_ends_the_server(start_server: StartServer, tmp_path: Path) -> None:
    mine = start_server(ready=False, model=tmp_path / "nothing")
    assert mine.wait() == 1
    assert "there is no model at" in mine.output
    assert "Traceback" not in mine.output
    assert "Fatal" not in mine.output


def test_a_model_without_calibration_says_what_to_do(start_server: StartServer) -> None:
    mine = start_server(ready=False, calibration="")
    assert mine.wait() == 1
    assert "palimpsest-server calibrate" in mine.output
