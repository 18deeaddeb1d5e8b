"""The engine at its limit, beside others: `python -m bench.engine [--only direct served]`.

Direct: llama.cpp over the same GGUF, transformers and our decoder do the same work in turn, two threads each; ratios of medians.
Served: what a running server adds, and how it keeps pace.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from palimpsest import Client
from rich.console import Console
from rich.table import Table

from bench.engine import served
from bench.engine.contenders import Contender, LlamaCpp, Ours, Transformers
from bench.engine.report import draw
from bench.server_process import ServerProcess
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL, locate

RESULTS = Path(__file__).parent.parent / "results" / "engine.json"
SHORT, LONG = 512, 7_900
SESSIONS = 8
BARS: Mapping[str, float] = {
    "prefill_512_ratio": 6,
    "prefill_7900_ratio": 14,
    "decode_512_ratio": 1.5,
    "decode_7900_ratio": 4,
    "decode_batch8_ratio": 2,
    "ttft_256k_over_1k": 1.1,
    "state_256k_over_1k": 1,
    "state_mib": 16,
    "overhead_ms_per_token": 1,
    "itl_p99_under_append_ratio": 3,
    "rotation_errors": 0,
}
"""What must hold; the first five at least, the others at most."""
AT_LEAST = tuple(BARS)[:5]
QUESTION = (
    "\nNow think of everything that has been told so far, of the people and the places in it, and of what became of them,"
    " and then say in a few words what happened. It was"
)
console = Console(stderr=True)


def direct(contenders: Sequence[Contender], tokens: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of seconds by figure and contender: each round lets all of them do the same, one after another."""
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for one in contenders:
            for length in (SHORT, LONG):
                prefill = one.read(tokens[:length])
                figures: dict[str, Callable[[], float]] = {
                    f"decode_{length}": lambda: one.decode(32),  # noqa: B023 - called at once
                    f"ask_{length}": lambda: one.ask(tokens[LONG : LONG + 32]),  # noqa: B023
                }
                if length == SHORT:
                    figures["decode_batch8"] = lambda: one.decode_together(SESSIONS, 32)  # noqa: B023
                taken = {f"prefill_{length}": prefill, **{name: take() for name, take in figures.items()}}
                for name, seconds in taken.items():
                    if turn:  # the first round warms up
                        seen[name][one.name].append(seconds)
                console.print(f"{turn} {one.name}", {name: round(seconds, 4) for name, seconds in taken.items()})
    return {name: {of: statistics.median(times) for of, times in by.items()} for name, by in seen.items()}


def history(
    contenders: Sequence[Contender], tokens: Sequence[int], lengths: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """Bytes that are kept, and seconds to the first token of a 32-token question, by tokens of history."""
    rows = []
    for one in contenders:
        for length in lengths[one.name]:
            one.read((list(tokens) * (1 + length // len(tokens)))[:length])
            asked = statistics.median(one.ask(tokens[:32]) for _ in range(5))
            rows.append({"engine": one.name, "tokens": length, "bytes": one.state_bytes(), "ttft": asked})
            console.print(rows[-1])
    return rows


def serve(model: str, dtype: str, tokens: int, long: int) -> dict[str, Any]:
    """The figures of a running server."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-engine-") as name:
        folder = Path(name)
        settings = {"MODEL": model, "DTYPE": dtype, "DATA_DIR": folder / "data", "RESIDENT_SESSIONS": 32}
        server = ServerProcess(settings, folder / "server.log", alone=True)
        try:
            with Client(server.start(), timeout=3600) as client:
                cost = served.overhead(client, server.url, 5, 96)
                console.print(cost)
                turn = served.rotation(client, 256, 2)
                console.print(turn)
                alone = served.silences(client, 20.0)
                beside = served.silences(client, 0.0, appended=tokens)
                first = served.first_token(client, (1_000, long), 9, QUESTION)
                console.print(first)
        finally:
            server.kill()
    quiet, busy = (_percentile(gaps, 0.99) for gaps in (alone, beside))
    return {
        "overhead_ms_per_token": cost.overhead_ms,
        "token_ms": cost.token_ms,
        "compute_ms_per_token": cost.compute_ms,
        "itl_p99_under_append_ratio": busy / quiet,
        "itl_p99_ms": 1000 * quiet,
        "itl_p99_under_append_ms": 1000 * busy,
        "itl_median_ms": 1000 * statistics.median(alone),
        "itl_median_under_append_ms": 1000 * statistics.median(beside),
        "appended_tokens": tokens,
        "rotation_errors": turn.errors,
        "rotation": asdict(turn),
        "ttft_256k_over_1k": first[long] / first[1_000],
        "ttft_seconds": first,
        "ttft_tokens": long,
    }


def copy_rate(threads: int) -> float:
    """Bytes a second at which memory is read: the sum of a tensor far larger than the caches."""
    import time

    torch.set_num_threads(threads)
    block = torch.ones(2**26, dtype=torch.int64)
    rates = []
    for _ in range(7):
        began = time.perf_counter()
        block.sum()
        rates.append(block.nbytes / (time.perf_counter() - began))
    return statistics.median(rates)


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description="The engine beside others.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="int8", help="precision of our weights")
    parser.add_argument("--only", nargs="*", choices=("direct", "history", "served"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--appended", type=int, default=100_000)
    parser.add_argument("--long", type=int, default=256_000, help="tokens of the longest session")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = options.only or ["direct", "history", "served"]
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if "direct" in wanted or "history" in wanted:
        ours = Ours(options.model, options.dtype, options.threads)
        tokens = ours.encode(prose(random.Random(5), 60_000))
        theirs = LlamaCpp(locate(options.model).path, LONG + 64, SESSIONS, options.threads)
        others = Transformers(options.model, options.threads)
        contenders: list[Contender] = [ours, theirs, others]
        found |= {"engines": [one.name for one in contenders], "threads": options.threads}
        if "direct" in wanted:
            medians = direct(contenders, tokens, options.rounds)
            found["seconds"] = medians
            for name, by in medians.items():
                if not name.startswith("ask"):
                    found[f"{name}_ratio"] = by[theirs.name] / by[ours.name]
            rate = copy_rate(options.threads)
            found["memory_bytes_per_second"] = rate
            found["decode_share_of_limit"] = ours.weight_bytes / medians[f"decode_{SHORT}"][ours.name] / rate
        if "history" in wanted:
            within = (1_000, 2_000, 4_000, LONG)
            lengths = {ours.name: (*within, 32_000, 256_000), theirs.name: within, others.name: within}
            found["history"] = history(contenders, tokens, lengths)
            sizes = {row["tokens"]: row["bytes"] for row in found["history"] if row["engine"] == ours.name}
            found |= {"state_256k_over_1k": sizes[256_000] / sizes[1_000], "state_mib": sizes[256_000] / 2**20}
    if "served" in wanted:
        found |= serve(options.model, options.dtype, options.appended, options.long)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if "history" in found:
        draw(found["history"], options.out.parent)
    shown = Table(title="The engine beside others")
    for head in ("figure", "measured", "wanted"):
        shown.add_column(head, justify="left" if head == "figure" else "right")
    for name, bar in BARS.items():
        if name in found:
            shown.add_row(name, f"{found[name]:.2f}", f"{'≥' if name in AT_LEAST else '≤'} {bar:g}")
    Console().print(shown)


if __name__ == "__main__":
    main()
