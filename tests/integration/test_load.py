"""Many sessions at once on one worker."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future, ThreadPoolExecutor

from palimpsest import GenerationDelta
from palimpsest.session import SessionHandle
from palimpsest.types import Segment

from bench.server_process import ServerProcess
from tests.integration.continuing import greedy
from tests.integration.texts import plain_text

STREAMS = 16


def moments(session: SessionHandle, number: int, reading: Future[Segment]) -> list[float]:
    """When the pieces of text arrived, of one generation after the other until the text is read."""
    times: list[float] = []
    for turn in itertools.count():
        events = session.stream(max_tokens=500, temperature=1.2, top_k=100, seed=1000 * number + turn)
        times += [time.monotonic() for event in events if isinstance(event, GenerationDelta)]
        if reading.done():
            break
    return times


def longest_gap(times: list[float]) -> float:
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0)


def test_a_long_text_starves_no_stream(server: ServerProcess) -> None:
    with server.client() as client, ThreadPoolExecutor(STREAMS + 1) as threads:
        reader, *speakers = [client.sessions.create() for _ in range(STREAMS + 1)]
        for number, speaker in enumerate(speakers):
            speaker.append(plain_text(number, 40))
        began = time.monotonic()
        reading = threads.submit(reader.append, plain_text(99, 48_500))
        streams = [threads.submit(moments, speaker, number, reading) for number, speaker in enumerate(speakers)]
        read = reading.result()
        ended = time.monotonic()
        heard = [stream.result() for stream in streams]
        assert read.position == reader.refresh().position > 100_000
    assert all(heard)
    # Everybody got on while the text was being read, rather than when it was over.
    assert all(times[min(10, len(times) - 1)] < ended for times in heard)
    assert max(map(longest_gap, heard)) < max(2.0, (ended - began) / 10)


def test_more_sessions_than_places_are_all_answered_right(narrow: ServerProcess, server: ServerProcess) -> None:
    def converse(session: SessionHandle, number: int) -> list[int]:
        tokens = []
        for turn in range(2):
            session.append(plain_text(100 * number + turn, 30))
            tokens += [token.token_id for token in greedy(session, 10)]
        return [*tokens, session.refresh().position]

    def everybody(where: ServerProcess) -> list[list[int]]:
        with where.client() as client, ThreadPoolExecutor(12) as threads:
            sessions = [client.sessions.create() for _ in range(12)]
            return list(threads.map(converse, sessions, range(12)))

    assert everybody(narrow) == everybody(server)


def test_memory_does_not_grow_with_tokens(server: ServerProcess) -> None:
    with server.client() as client:
        session = client.sessions.create()
        session.append(plain_text(1, 2000))
        before, bytes_before = server.worker_rss, session.memory().state_bytes
        for part in range(2):
            session.append(plain_text(part, 10_000))
        assert session.refresh().position > 45_000
        assert session.memory().state_bytes == bytes_before
        assert server.worker_rss - before < 30 << 20
