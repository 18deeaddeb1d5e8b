"""Parked sessions of a real model in one Redis, without a server around them: `python -m bench.parked_states [--sessions 500]`.

All share one text, so that one reading serves for all; each has a state of its own in Redis. Some are resumed at random, to the
first token behind a question. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from redis.asyncio import Redis
from rich.console import Console

from bench.park.histories import CHUNK, read_on, repeated
from bench.parked import percentile, shown, timed, together, used_bytes
from bench.redis_process import RedisProcess
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL
from server.ids import new_id
from server.messages import SamplingParams
from server.settings import load
from server.store.base import SessionRecord, Store
from server.store.factory import create_store
from server.worker.runner import Feed, Runner
from server.worker.runners import Runners

RESULTS = Path(__file__).parent / "results" / "parked_states.json"
QUESTION = "\nWhat do you remember of all this?"


@dataclass(frozen=True)
class Figures:
    """What was seen; `tokens` is the history of every session. Milliseconds are those of one session."""

    sessions: int
    tokens: int
    state_bytes: int
    redis_bytes: int
    redis_bytes_a_session: int
    parked_per_second: float
    resumed: int
    load_p50_ms: float
    load_p99_ms: float
    resume_p50_ms: float
    resume_p99_ms: float


def read(runner: Runner, tokens: int) -> bytes:
    """The state behind so many tokens of prose."""
    text = repeated(runner.reader, prose(random.Random(3), 6 * tokens), tokens)
    runner.restore(0, None)
    for place in range(0, tokens, CHUNK):
        runner.run([Feed("reading", 0, text[place : place + CHUNK], None)])
    return runner.save(0)[1]


async def park(store: Store, state: bytes, tokens: int, count: int) -> tuple[float, list[str]]:
    """Store `count` sessions of that state, four at a time. Seconds, and their ids."""
    ids = [new_id("sess") for _ in range(count)]
    waiting = iter(ids)

    async def park_some() -> None:
        for session_id in waiting:
            now = time.time()
            record = SessionRecord(session_id, "bench", "bench", "slots", now, now, journaled=tokens)
            await store.adopt(record, state, ())

    return await together(4, park_some), ids


async def resume(runner: Runner, store: Store, session_id: str, question: list[int]) -> tuple[float, float]:
    """Seconds to have the session's bytes, and to its first token behind the question."""
    began = time.perf_counter()
    loading, stored = await timed(store.load(session_id))
    runner.restore(0, stored.snapshot)
    runner.run([Feed("resumed", 0, question, runner.voice(SamplingParams(temperature=0, max_tokens=1)))])
    return loading, time.perf_counter() - began


async def measure(runner: Runner, url: str, options: argparse.Namespace) -> Figures:
    """The figures on a Redis that is empty."""
    state = read(runner, options.tokens)
    question = read_on(runner.reader, QUESTION)
    store = create_store(load(store=url))
    await store.open()
    try:
        async with Redis.from_url(url) as redis:
            empty = await used_bytes(redis)
            parking, ids = await park(store, state, options.tokens, options.sessions)
            used = await used_bytes(redis) - empty
        chosen = random.Random(options.seed).choices(ids, k=options.resumes)
        took = [await resume(runner, store, session_id, question) for session_id in chosen]
    finally:
        await store.close()
    loads, resumes = [loading for loading, _ in took], [whole for _, whole in took]
    return Figures(
        sessions=len(ids),
        tokens=options.tokens,
        state_bytes=len(state),
        redis_bytes=used,
        redis_bytes_a_session=used // len(ids),
        parked_per_second=round(len(ids) / parking, 1),
        resumed=len(took),
        load_p50_ms=percentile(loads, 0.5),
        load_p99_ms=percentile(loads, 0.99),
        resume_p50_ms=percentile(resumes, 0.5),
        resume_p99_ms=percentile(resumes, 0.99),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.parked_states", description="Parked sessions of a real model."
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=256, help="history of each session")
    parser.add_argument("--resumes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runners = Runners(load(model=options.model, resident_sessions=1), 0)
    runners.bind_thread()
    runners.load()
    with tempfile.TemporaryDirectory(prefix="palimpsest-parked-") as name, RedisProcess(Path(name)) as redis:
        figures = asyncio.run(measure(runners.default, redis.url, options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    Console(stderr=True).print(shown(figures, f"Parked sessions of {options.model}"))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
