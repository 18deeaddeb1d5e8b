"""Thousands of parked sessions in one Redis, behind one real server: `python -m bench.parked [--sessions 10000]`.

Every session is created, takes in a few words, and leaves the worker's memory when its row is wanted. Then all are listed page by
page, and some are resumed at random with a question of one token that leaves no trace. The model is a tiny one with random
weights: what is measured is everything around the model. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palimpsest import AsyncClient
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from bench.redis_process import RedisProcess
from bench.server_process import ServerProcess
from bench.tiny_model import build_tiny_model, calibrate_tiny_model
from models.probes import prose

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS = Path(__file__).parent / "results" / "parked.json"
SMALL = {"window": 32, "segment": 16, "slots": 24, "sinks": 4, "dtype": "float32", "threads": 1}
TEXT_CHARACTERS = 40
PAGE = 100

T = TypeVar("T")


class LostSessionError(RuntimeError):
    """A session was not listed, or stood elsewhere than it should."""


@dataclass(frozen=True)
class Figures:
    """What was seen. `seconds_ran_out` means that fewer sessions than wanted were made in the time given."""

    sessions: int
    seconds_ran_out: bool
    resident: int
    clients: int
    state_bytes: int
    redis_bytes: int
    redis_bytes_a_session: int
    created_per_second: float
    create_p50_ms: float
    create_p99_ms: float
    pages: int
    page_p50_ms: float
    page_p99_ms: float
    resumed: int
    resume_p50_ms: float
    resume_p99_ms: float
    resumed_together_per_second: float
    seconds: float


def percentile(seconds: Sequence[float], share: float) -> float:
    """The least of the values, in milliseconds, that `share` of all do not exceed."""
    place = max(0, math.ceil(share * len(seconds)) - 1)
    return round(sorted(seconds)[place] * 1000, 2)


async def timed(work: Awaitable[T]) -> tuple[float, T]:
    """Seconds it took, and what came of it."""
    began = time.perf_counter()
    result = await work
    return time.perf_counter() - began, result


async def together(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> float:
    """Run `count` of the same at once; the seconds until the last has ended."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(work())
    return time.perf_counter() - began


class Crowd:
    """Sessions of one server, and where each of them stands."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self._client, self._random = client, random.Random(seed)
        self.positions: dict[str, int] = {}
        self.state_bytes = 0

    async def make(self, count: int, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Create sessions of a few words each until there are `count` or the time is over. Seconds in all, and of each."""
        numbers, took = iter(range(count)), list[float]()
        deadline = time.perf_counter() + seconds

        async def make_some() -> None:
            for number in numbers:
                if time.perf_counter() > deadline:
                    return
                spent, _ = await timed(self._make_one(number))
                took.append(spent)

        return await together(clients, make_some), took

    async def _make_one(self, number: int) -> None:
        session = await self._client.sessions.create(metadata={"number": str(number)})
        segment = await session.append(prose(random.Random(number), TEXT_CHARACTERS))
        self.positions[session.id] = segment.position
        self.state_bytes = session.info.state_bytes or self.state_bytes

    async def list_all(self) -> list[float]:
        """Seconds of every page. Raises `LostSessionError` unless each session is on one of them, once."""
        took, listed, after = list[float](), list[str](), None
        while True:
            spent, page = await timed(self._client.sessions.list(limit=PAGE, after=after, order="asc"))
            took.append(spent)
            listed += [session.id for session in page.data]
            if not page.has_more:
                break
            after = listed[-1]
        if sorted(listed) != sorted(self.positions):
            raise LostSessionError(f"{len(self.positions)} sessions were made, {len(listed)} are listed")
        return took

    async def resume(self, count: int, clients: int) -> tuple[float, list[float]]:
        """Ask `count` sessions at random. Seconds in all, and of each."""
        chosen, took = iter(self._random.choices(list(self.positions), k=count)), list[float]()

        async def ask_some() -> None:
            for session_id in chosen:
                took.append(await self._ask(session_id))

        return await together(clients, ask_some), took

    async def _ask(self, session_id: str) -> float:
        session = await self._client.sessions.get(session_id)
        asking = session.generate(" And", max_tokens=1, temperature=0, remember=False)
        spent, answer = await timed(asking)
        if answer.position != self.positions[session_id]:
            raise LostSessionError(f"{session_id} stands at {answer.position}, not {self.positions[session_id]}")
        return spent


async def measure(url: str, redis_url: str, options: argparse.Namespace) -> Figures:
    """The figures of a running server and its Redis, which is empty."""
    began = time.perf_counter()
    async with AsyncClient(url, timeout=60) as client, Redis.from_url(redis_url) as redis:
        empty = await used_bytes(redis)
        crowd = Crowd(client, options.seed)
        making, made = await crowd.make(options.sessions, options.clients, options.seconds * 0.7)
        used = await used_bytes(redis) - empty
        pages = await crowd.list_all()
        _, alone = await crowd.resume(options.resumes, 1)
        joint, _ = await crowd.resume(options.resumes, options.clients)
    return Figures(
        sessions=len(made),
        seconds_ran_out=len(made) < options.sessions,
        resident=options.resident,
        clients=options.clients,
        state_bytes=crowd.state_bytes,
        redis_bytes=used,
        redis_bytes_a_session=used // len(made),
        created_per_second=round(len(made) / making, 1),
        create_p50_ms=percentile(made, 0.5),
        create_p99_ms=percentile(made, 0.99),
        pages=len(pages),
        page_p50_ms=percentile(pages, 0.5),
        page_p99_ms=percentile(pages, 0.99),
        resumed=len(alone),
        resume_p50_ms=percentile(alone, 0.5),
        resume_p99_ms=percentile(alone, 0.99),
        resumed_together_per_second=round(options.resumes / joint, 1),
        seconds=round(time.perf_counter() - began, 1),
    )


async def used_bytes(redis: Redis) -> int:
    """What Redis says that it has allocated."""
    memory: Mapping[str, int] = await redis.info("memory")
    return memory["used_memory"]


def shown(figures: DataclassInstance, title: str) -> Table:
    """Any figures for people."""
    table = Table(title=title, show_header=False)
    for field, value in asdict(figures).items():
        table.add_row(field.replace("_", " "), str(value) if isinstance(value, bool) else f"{value:,}")
    return table


def settings(folder: Path, redis_url: str, resident: int) -> Iterator[tuple[str, object]]:
    """What the server is told."""
    model = folder / "model"
    model.mkdir()
    yield "model", build_tiny_model(model)
    yield "calibration", calibrate_tiny_model(model, folder / "calibration.json")
    yield "store", redis_url
    yield "data_dir", folder / "data"
    yield "resident_sessions", resident
    yield from SMALL.items()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.parked", description="Thousands of parked sessions in one Redis."
    )
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--resumes", type=int, default=500, help="how many are resumed, one by one, and again together")
    parser.add_argument("--resident", type=int, default=32, help="rows of the worker")
    parser.add_argument("--clients", type=int, default=8, help="requests at once")
    parser.add_argument("--seconds", type=float, default=360, help="about how long it may all take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-parked-") as name,
        RedisProcess(Path(name) / "redis") as redis,
    ):
        folder = Path(name)
        server = ServerProcess(dict(settings(folder, redis.url, options.resident)), folder / "server.log")
        try:
            figures = asyncio.run(measure(server.start(), redis.url, options))
        except BaseException:
            sys.stderr.write(server.log.read_text(encoding="utf-8")[-4000:])
            raise
        finally:
            server.kill()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    Console(stderr=True).print(shown(figures, "Parked sessions"))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
