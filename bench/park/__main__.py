"""See `bench.park`. The last line of its output is one JSON object, which is in the file of results, too.

States that were read before are taken from --states: `--only-states` reads them, for a run in the quiet later.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from rich.console import Console

from bench.park.cycle import TENANT, Parking
from bench.park.histories import CHUNK, Histories, read_on, repeated
from bench.park.report import Row, row, table
from bench.park.reread import LlamaJob, Reread, Rereading, reread
from bench.redis_process import RedisProcess
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL, locate
from server.messages import Ready
from server.settings import Settings, load
from server.store.base import Store
from server.store.factory import create_store
from server.store.sealing import create_sealer
from server.worker.runner import Feed, Runner
from server.worker.runners import Runners

RESULTS = Path(__file__).parent.parent / "results" / "park.json"
QUESTION = "\nWhat do you remember of all this?"
_SPEED_TOKENS = 2_048

console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What is measured over which text."""

    lengths: Sequence[int]
    repeats: int
    tokens: Sequence[int]
    question: Sequence[int]


def main() -> None:
    """Entry point."""
    options = _options()
    settings = load(model=options.model, resident_sessions=2, threads=options.threads)
    runners = Runners(settings, 0)
    runners.bind_thread()
    runners.load()
    runner = runners.default
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 400_000)
    tokens = repeated(runner.reader, book, max(options.lengths) + max(_SPEED_TOKENS, options.repeats))
    plan = Plan(sorted(options.lengths), options.repeats, tokens, read_on(runner.reader, QUESTION))
    histories = Histories(runner, tokens, options.states, console.print)
    for length in plan.lengths:
        histories.state(length)
        console.print(f"{length:,} tokens: state at hand")
    if options.only_states:
        return
    rereading = _reread(options, plan) if options.llama_python else None
    with tempfile.TemporaryDirectory(prefix="palimpsest-park-") as name, RedisProcess(Path(name)) as redis:
        rows = asyncio.run(_park(runner, histories, plan, redis.url, rereading))
    result = _result(options, runners.describe(), rereading, rows)
    _write(options.out, result)
    console.print(table(rows))
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.park", description="Park and resume, against reading again.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4_096, 65_536, 262_144], help="tokens of history")
    parser.add_argument("--book", type=Path, help="a plain text, repeated; default: generated prose")
    parser.add_argument("--states", type=Path, default=Path(tempfile.gettempdir()) / "palimpsest-park-states")
    parser.add_argument("--only-states", action="store_true", help="read what is missing in --states, measure nothing")
    parser.add_argument("--repeats", type=int, default=7, help="cycles a length, at least 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-python", type=Path, help="a Python that has llama-cpp-python; none: not compared")
    parser.add_argument("--llama-longest", type=int, default=65_536, help="longest history that llama.cpp is given")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which llama.cpp need not read on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.repeats < 5 or min(options.lengths) < CHUNK:
        parser.error(f"give at least 5 repeats, and lengths of at least {CHUNK} tokens")
    return options


def _reread(options: argparse.Namespace, plan: Plan) -> Rereading:
    console.print(f"llama.cpp reads, for at most {options.limit:.0f} s")
    lengths = [length for length in plan.lengths if length <= options.llama_longest]
    return reread(
        options.llama_python,
        LlamaJob(
            model=str(locate(options.model).path),
            threads=options.threads,
            tokens=plan.tokens[: max(lengths)],
            question=plan.question,
            lengths=lengths,
            limit=options.limit,
            repeats=3,
        ),
    )


async def _park(runner: Runner, histories: Histories, plan: Plan, url: str, rereading: Rereading | None) -> list[Row]:
    settings = load(store=url)
    store = create_store(settings)
    await store.open()
    try:
        return [await _row(runner, histories, plan, store, settings, length, rereading) for length in plan.lengths]
    finally:
        await store.close()


async def _row(
    runner: Runner,
    histories: Histories,
    plan: Plan,
    store: Store,
    settings: Settings,
    length: int,
    rereading: Rereading | None,
) -> Row:
    parking = Parking(runner, store, create_sealer(settings), plan.question)
    following = plan.tokens[length : length + plan.repeats]
    session_id, parked = await parking.measure(histories.state(length), following)
    redis_bytes = await _bytes_in_redis(settings.store)
    await store.delete(TENANT, session_id)
    llama: Reread | None = rereading.towards(length) if rereading else None
    console.print(f"{length:,} tokens: resumed in {parked.median('resume'):.1f} ms")
    return row(length, parked, redis_bytes, _speed(runner, plan.tokens[length : length + _SPEED_TOKENS]), llama)


def _speed(runner: Runner, tokens: Sequence[int]) -> float:
    """Tokens a second of reading on where the measured session stands."""
    began = time.perf_counter()
    for place in range(0, len(tokens), CHUNK):
        runner.run([Feed("speed", 0, tokens[place : place + CHUNK], None)])
    return len(tokens) / (time.perf_counter() - began)


async def _bytes_in_redis(url: str) -> int:
    """What all keys take together, by Redis's own count: one session is in it, with two snapshots."""
    async with Redis.from_url(url) as redis:
        return sum([await redis.memory_usage(key, samples=0) or 0 async for key in redis.scan_iter(count=1000)])


def _result(
    options: argparse.Namespace, served: Ready, rereading: Rereading | None, rows: Sequence[Row]
) -> dict[str, Any]:
    return {
        "model": options.model,
        "memory": served.offers[0].memory,
        "dtype": served.dtype,
        "threads": options.threads,
        "llama_flash_attention": rereading.flash_attention if rereading else None,
        "rows": [asdict(one) for one in rows],
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
