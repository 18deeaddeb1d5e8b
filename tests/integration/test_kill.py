"""SIGKILL at any moment: what was acknowledged is there exactly once, and the session goes on as if nothing had been.

Every other kill hits the whole server, the rest the worker alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from palimpsest import Client, GenerationCompleted, GenerationDelta, PalimpsestError
from palimpsest.session import SessionHandle

from bench.server_process import ServerProcess
from models.codec import StateKind
from tests.integration.conftest import StartServer
from tests.integration.continuing import assert_alike, greedy
from tests.integration.stored import assert_same_state, saved_state
from tests.integration.texts import cut, mixed_text, plain_text

KILLS = 8
ANSWER = 100
"""Tokens of a generation."""


class Append:
    """One piece of a text on its way in, by one of the ways there are."""

    def __init__(self, number: int, text: str) -> None:
        self._number, self._text = number, text

    def send(self, session: SessionHandle) -> int:
        """The position it was acknowledged with."""
        op_id = f"piece-{self._number}"
        match self._number % 4:
            case 0:
                return session.append_stream(iter([self._text]), op_id=op_id).position
            case 1 | 2:
                return session.append(self._text, op_id=op_id, wait="journal").position
            case _:
                return session.append(self._text, op_id=op_id).position


def recover(server: ServerProcess, whole: bool) -> None:
    if whole:
        server.start()
    else:
        server.wait_ready()


def await_snapshot(server: ServerProcess) -> None:
    """Return while one is being written, or after two seconds without any."""
    deadline = time.monotonic() + 2
    folder = server.data_dir / "snapshots"
    while time.monotonic() < deadline and not any(folder.glob("*.partial")):
        pass


def strike(server: ServerProcess, choose: random.Random, whole: bool) -> None:
    """Kill after some time, or in the midst of a snapshot."""
    if choose.random() < 0.4:
        await_snapshot(server)
    else:
        time.sleep(choose.uniform(0, 0.5))
    if whole:
        server.kill()
    else:
        server.kill_worker()


def append_until_killed(server: ServerProcess, session_id: str, waiting: list[Append], kill: threading.Thread) -> None:
    """Take pieces off `waiting` as they are acknowledged, until the server does not answer any more."""
    position = 0
    with server.client() as client:
        session = client.sessions.get(session_id)
        kill.start()
        try:
            while True:
                acknowledged = waiting[0].send(session)
                assert acknowledged >= position
                position = acknowledged
                del waiting[0]
        except PalimpsestError:
            kill.join()


def test_every_acknowledged_append_is_there_exactly_once(
    server: ServerProcess, start_server: StartServer, state_kind: StateKind
) -> None:
    choose = random.Random(20)
    victim = start_server(snapshot_tokens=16, idle_seconds=0.1)
    appends = [Append(number, text) for number, text in enumerate(cut(mixed_text(3, 20_000), 4, 80))]
    waiting = list(appends)
    with victim.client() as client:
        session_id = client.sessions.create().id
    for number in range(KILLS):
        whole = number % 2 == 0
        killer = threading.Thread(target=strike, args=(victim, choose, whole))
        append_until_killed(victim, session_id, waiting, killer)
        recover(victim, whole)
    sent = len(appends) - len(waiting) + 1
    with victim.client() as client, server.client() as other:
        session, uninterrupted = client.sessions.get(session_id), other.sessions.create()
        assert waiting[0].send(session) == session.refresh().position
        for append in appends[:sent]:
            append.send(uninterrupted)
        assert_alike(session, uninterrupted, 30)
        assert_same_state(
            saved_state(victim.data_dir, session_id, state_kind),
            saved_state(server.data_dir, uninterrupted.id, state_kind),
        )


def seen_before_the_kill(session: SessionHandle, kill: Callable[[], None], after: int) -> list[int]:
    """Token ids that reached the client of a generation which was killed behind the first `after` of them."""
    seen: list[int] = []
    killed = False
    try:
        for event in session.stream(max_tokens=ANSWER, temperature=0, logprobs=0):
            assert not isinstance(event, GenerationCompleted)
            if isinstance(event, GenerationDelta):
                seen += [token.token_id for token in event.logprobs or ()]
            if len(seen) >= after and not killed:
                killed = True
                kill()
    except PalimpsestError:
        pass
    assert killed
    return seen


def long_answers(client: Client, count: int) -> Sequence[tuple[str, list[int]]]:
    """Texts after which the model goes on for `ANSWER` tokens, and these tokens."""
    found = []
    for seed in range(100):
        text = plain_text(seed, 60)
        session = client.sessions.create()
        session.append(text)
        tokens = [token.token_id for token in greedy(session, ANSWER)]
        if len(tokens) == ANSWER:
            found.append((text, tokens))
        if len(found) == count:
            return found
    raise AssertionError("the tiny model has become too curt for this test")


def test_what_was_seen_of_a_generation_is_remembered(client: Client, start_server: StartServer) -> None:
    choose = random.Random(21)
    victim = start_server(snapshot_tokens=16, idle_seconds=0.1)
    for number, (text, expected) in enumerate(long_answers(client, 4)):
        whole = number % 2 == 0
        with victim.client() as before:
            session = before.sessions.create()
            begin = session.append(text).position
            kill = victim.kill if whole else victim.kill_worker
            seen = seen_before_the_kill(session, kill, choose.randint(1, 40))
        recover(victim, whole)
        with victim.client() as after:
            session = after.sessions.get(session.id)
            kept = session.info.position - begin
            assert 0 < len(seen) <= kept < ANSWER
            assert seen == expected[: len(seen)]
            assert [token.token_id for token in greedy(session, ANSWER - kept)] == expected[kept:]
