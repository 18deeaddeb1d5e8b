"""What a running server adds: HTTP, processes and scheduling, streams beside a long append, many sessions in turn."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from palimpsest import Client, GenerationDelta, GenerationStarted
from palimpsest.session import SessionHandle

from models.probes import passkey, prose

STREAMS = 8
_TOKEN_CHARACTERS = 5
_PIECE = 32_768
"""Characters of one append."""


@dataclass(frozen=True)
class Overhead:
    """Milliseconds a streamed token: seen by the client, and spent computing."""

    token_ms: float
    compute_ms: float

    @property
    def overhead_ms(self) -> float:
        """What HTTP, processes and scheduling cost."""
        return self.token_ms - self.compute_ms


@dataclass(frozen=True)
class Rotation:
    """Sessions that were asked in turn over WebSockets, more than there is room for."""

    sessions: int
    asked: int
    errors: int
    seconds: float


def overhead(client: Client, url: str, rounds: int, tokens: int) -> Overhead:
    """One stream and nothing else; the median of `rounds`."""
    session = client.sessions.create()
    session.append(prose(random.Random(3), 512 * _TOKEN_CHARACTERS))
    session.generate("\nThen", max_tokens=8)
    seen, computed = [], []
    for seed in range(rounds):
        before = _metrics(url)
        times = [time.perf_counter() for _ in _pieces(session, tokens, seed)]
        after = _metrics(url)
        steps = after["palimpsest_batch_sessions_count"] - before["palimpsest_batch_sessions_count"]
        computed.append(
            (after["palimpsest_compute_seconds_total"] - before["palimpsest_compute_seconds_total"]) / steps
        )
        seen.append((times[-1] - times[0]) / (len(times) - 1))  # the mean, as of what was computed
    return Overhead(1000 * statistics.median(seen), 1000 * statistics.median(computed))


def first_token(client: Client, lengths: Sequence[int], rounds: int, question: str) -> dict[int, float]:
    """Median seconds to the first piece of an answer to a question, in sessions of so many tokens, asked in turn."""
    sessions = {length: client.sessions.create() for length in lengths}
    for length, session in sessions.items():
        _append(session, length)
        session.generate(question, max_tokens=1, remember=False)
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, session in sessions.items():
            began = time.perf_counter()
            with session.stream(question, max_tokens=1, remember=False) as events:
                next(event for event in events if not isinstance(event, GenerationStarted))
                seconds[length].append(time.perf_counter() - began)
    return {length: statistics.median(times) for length, times in seconds.items()}


def silences(client: Client, seconds: float, appended: int = 0) -> list[float]:
    """Between two pieces of text, over all of several streams, for some seconds or while a long text is appended."""
    speakers = [client.sessions.create() for _ in range(STREAMS)]
    for number, speaker in enumerate(speakers):
        speaker.append(prose(random.Random(number), 1500))
        speaker.generate("\nThen", max_tokens=2)
    going = threading.Event()
    going.set()
    with ThreadPoolExecutor(STREAMS) as threads:
        running = [threads.submit(_speak, speaker, going, number) for number, speaker in enumerate(speakers)]
        time.sleep(1.0)  # all of them speak
        if appended:
            _append(client.sessions.create(), appended)
        else:
            time.sleep(seconds)
        going.clear()
        return [gap for one in running for gap in one.result()]


def rotation(client: Client, sessions: int, turns: int) -> Rotation:
    """Each session is told a key of its own; then all are asked for theirs in turn, `turns` times."""
    source = random.Random(11)
    wrong = 0
    began = time.monotonic()
    with ExitStack() as open_sockets:
        told = []
        for _ in range(sessions):
            needle = passkey(source)
            socket = open_sockets.enter_context(client.sessions.create().connect())
            socket.append(f"There is an important fact hidden here. Remember it.\n{needle.sentence}\n")
            told.append((socket, needle))
        for _ in range(turns):
            for socket, needle in told:
                with socket.generate(f"\n{needle.question}", max_tokens=6, temperature=0, remember=False) as generation:
                    answer = "".join(delta.text for delta in generation)
                wrong += not answer.startswith(needle.answer)
    return Rotation(sessions, sessions * turns, wrong, time.monotonic() - began)


def _append(session: SessionHandle, tokens: int) -> None:
    """Prose, until the session has so many tokens, and not many more."""
    source, position = random.Random(7), 0
    while position < tokens:
        missing = (tokens - position) * _TOKEN_CHARACTERS
        position = session.append(prose(source, min(_PIECE, max(200, missing)))).position


def _pieces(session: SessionHandle, tokens: int, seed: int) -> Iterator[GenerationDelta]:
    with session.stream("\nThen", max_tokens=tokens, temperature=1.0, seed=seed) as events:
        yield from (event for event in events if isinstance(event, GenerationDelta))


def _speak(session: SessionHandle, going: threading.Event, seed: int) -> list[float]:
    gaps: list[float] = []
    for turn in itertools.count():
        if not going.is_set():
            break
        times = [time.perf_counter() for _ in _pieces(session, 96, seed * 1000 + turn)]
        gaps += [later - earlier for earlier, later in itertools.pairwise(times)]
    return gaps


def _metrics(url: str) -> dict[str, float]:
    """Sums over all workers of what has no labels but the worker's."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found
