"""Many streams beside one long append: `python -m bench.load [--tokens 100000] [--streams 16]`.

Every stream generates again and again until the append is answered. Shown: whether all finished, the longest silence of any
stream, and the worker's resident memory before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from palimpsest import Client, GenerationDelta
from palimpsest.session import SessionHandle
from rich.console import Console
from rich.table import Table

from bench.server_process import ServerProcess
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "load.json"
CHARACTERS_A_TOKEN = 5
"""More than there are in a token of prose, so that the text is long enough."""


@dataclass(frozen=True)
class Load:
    """What was seen. Silences are seconds between two pieces of text of one stream, while the append was read."""

    model: str
    streams: int
    tokens_appended: int
    append_seconds: float
    append_tokens_per_second: float
    generations_finished: int
    generations_failed: int
    tokens_streamed: int
    median_silence: float
    longest_silence: float
    rss_before_mib: float
    rss_after_mib: float
    state_bytes: int


def speak(session: SessionHandle, reading: threading.Event, seed: int) -> tuple[list[list[float]], int]:
    """Generate until nothing is read any more. Returns when each piece came, by generation, and the failures."""
    heard: list[list[float]] = []
    failed = 0
    for turn in itertools.count():
        if not reading.is_set() and heard:
            return heard, failed
        events = list(_stamped(session, seed * 1000 + turn))
        failed += not events
        heard.append(events)
    raise AssertionError("unreachable")


def _stamped(session: SessionHandle, seed: int) -> Sequence[float]:
    events = session.stream("\nThen", max_tokens=48, temperature=1.0, seed=seed)
    return [time.monotonic() for event in events if isinstance(event, GenerationDelta)]


def measure(client: Client, server: ServerProcess, model: str, tokens: int, streams: int) -> Load:
    """The load on a running server."""
    text = prose(random.Random(7), tokens * CHARACTERS_A_TOKEN)
    reader = client.sessions.create()
    speakers = [client.sessions.create() for _ in range(streams)]
    for number, speaker in enumerate(speakers):
        speaker.append(prose(random.Random(number), 1500))
        speaker.generate("\nThen", max_tokens=2)
    reader.append(text[:8_000])
    (pid,) = server.worker_pids
    before, start = _rss(pid), reader.refresh().position
    reading = threading.Event()
    reading.set()
    with ThreadPoolExecutor(streams) as threads:
        running = [threads.submit(speak, speaker, reading, number) for number, speaker in enumerate(speakers)]
        began = time.monotonic()
        taken = 0
        for piece in _pieces(text[8_000:]):
            taken = reader.append(piece).position - start
            if taken >= tokens:
                break
        seconds = time.monotonic() - began
        reading.clear()
        heard = [one.result() for one in running]
    generations = [times for lists, _ in heard for times in lists]
    silences = sorted(later - earlier for times in generations for earlier, later in itertools.pairwise(times))
    return Load(
        model=model,
        streams=streams,
        tokens_appended=taken,
        append_seconds=round(seconds, 1),
        append_tokens_per_second=round(taken / seconds, 1),
        generations_finished=len(generations),
        generations_failed=sum(failed for _, failed in heard),
        tokens_streamed=sum(map(len, generations)),
        median_silence=round(silences[len(silences) // 2], 3),
        longest_silence=round(silences[-1], 3),
        rss_before_mib=round(before / 2**20, 1),
        rss_after_mib=round(_rss(pid) / 2**20, 1),
        state_bytes=reader.memory().state_bytes,
    )


def _pieces(text: str) -> Sequence[str]:
    return [text[begin : begin + 32_768] for begin in range(0, len(text), 32_768)]


def _rss(pid: int) -> int:
    """Resident bytes of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Many streams beside one long append.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="palimpsest-load-") as name:
        folder = Path(name)
        server = ServerProcess({"MODEL": options.model, "DATA_DIR": folder / "data"}, folder / "server.log")
        try:
            with Client(server.start(), timeout=3600) as client:
                load = measure(client, server, options.model, options.tokens, options.streams)
        finally:
            server.kill()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(load), indent=1) + "\n", encoding="utf-8")
    shown = Table(title="Streams beside a long append", show_header=False)
    for field, value in asdict(load).items():
        shown.add_row(field.replace("_", " "), f"{value:,}" if isinstance(value, (int, float)) else value)
    Console().print(shown)


if __name__ == "__main__":
    main()
