"""What a session still knows: `python -m bench.recall [--book PATH] [--quick]`.

Passkey in filler, a seven-digit needle in a book, facts in plain words, and the likelihood of the book itself, each beside its
controls.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.reading import Reader, full_attention_reader, window_reader
from bench.trials import Trials
from models.load import Offer, load_offers
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "recall.json"
COMPARED = 4_096
"""Tokens at which full attention says which facts the model can answer at all."""
DEPTHS = {"start": 0.0, "middle": 0.5, "end": 1.0}
TASKS = ("passkey", "needle", "multikey", "rewrite", "facts", "nll")
console = Console(stderr=True)


@dataclass(frozen=True)
class Result:
    """One figure. `accuracy` is digits for needles, nats a token for `nll`, and exact match for all else.

    `of_full` is the share of those facts that full attention finds at 4,096 tokens; None where nothing was compared.
    """

    mechanism: str
    task: str
    length: int
    depth: str
    trials: int
    accuracy: float
    state_bytes: int
    of_full: float | None = None


class Recall:
    """Runs trials and collects results."""

    def __init__(self, checkpoint: Checkpoint, book: str, out: Path) -> None:
        self._out = out
        self._trials = Trials(Tokenizer.of(checkpoint.tokenizer), book)
        self.results: list[Result] = []
        self._found_by_all: list[float] = []

    def passkey(self, reader: Reader, length: int, trials: int) -> None:
        """See `Trials.passkey`."""
        self._report(reader, "passkey", length, self._trials.passkey(reader, length, trials))

    def passkey_by_depth(self, reader: Reader, length: int, trials: int) -> None:
        """At the start, in the middle and at the end, so many trials each."""
        for name, depth in DEPTHS.items():
            self._report(reader, "passkey", length, self._trials.passkey(reader, length, trials, depth), name)

    def needles(self, reader: Reader, length: int, trials: int, haystacks: int) -> None:
        """See `Trials.needles`."""
        self._report(reader, "needle", length, self._trials.needles(reader, length, trials, haystacks))

    def multikey(self, reader: Reader, length: int, rounds: int) -> None:
        """See `Trials.multikey`."""
        self._report(reader, "multikey", length, self._trials.multikey(reader, length, rounds))

    def rewrite(self, reader: Reader, length: int, rounds: int) -> None:
        """See `Trials.rewrite`."""
        self._report(reader, "rewrite", length, self._trials.rewrite(reader, length, rounds))

    def facts(self, reader: Reader, length: int, rounds: int) -> None:
        """See `Trials.facts`. Full attention over 4,096 tokens comes first: the others are compared with it."""
        right = self._trials.facts(reader, length, rounds)
        if reader.name == "full_attention" and length == COMPARED:
            self._found_by_all = right
        shared = [one for one, found in zip(right, self._found_by_all, strict=False) if found]
        of_full = round(sum(shared) / len(shared), 4) if shared else None
        self._report(reader, "facts", length, right, of_full=of_full)

    def nll(self, reader: Reader, length: int) -> None:
        """Likelihood of the book's tokens from the 2,048th on."""
        losses = reader.losses(self._trials.book[:length])[2048:]
        self._add(
            Result(reader.name, "nll", length, "", len(losses), round(float(losses.mean()), 4), reader.state_bytes)
        )

    def _report(
        self,
        reader: Reader,
        task: str,
        length: int,
        right: Sequence[float],
        depth: str = "spread",
        of_full: float | None = None,
    ) -> None:
        accuracy = round(sum(right) / len(right), 4)
        self._add(Result(reader.name, task, length, depth, len(right), accuracy, reader.state_bytes, of_full))

    def _add(self, result: Result) -> None:
        self.results.append(result)
        self._save()
        figure = f"{result.accuracy:.4f}"
        console.print(
            f"{time.strftime('%H:%M:%S')} {result.task:<8} {result.length:>7,} {result.mechanism:<16} {figure}"
        )

    def _save(self) -> None:
        """Write what there is, after every figure: runs are long. What else an earlier run measured stays."""
        measured = {_what(asdict(one)) for one in self.results}
        earlier = json.loads(self._out.read_text(encoding="utf-8")) if self._out.exists() else []
        rows = [row for row in earlier if _what(row) not in measured] + [asdict(one) for one in self.results]
        rows.sort(key=lambda row: (TASKS.index(row["task"]), row["length"]))
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is a measurement of."""
    return row["mechanism"], row["task"], row["length"], row["depth"]


def offer_reader(model: str, offer: str) -> Reader:
    """A memory by name, or as `serve --offer` takes it: {"memory": …, "options": {…}, "adapter": "FILE"}."""
    chosen: dict[str, Any] = json.loads(offer) if offer.startswith("{") else {"memory": offer}
    adapter = Path(chosen["adapter"]) if "adapter" in chosen else None
    [loaded] = load_offers(
        [Offer(model, chosen["memory"], chosen.get("options", {}), adapter=adapter)], dtype=torch.bfloat16
    ).values()
    rule = chosen.get("options", {}).get("rule", getattr(loaded.decoder.memory.config, "rule", ""))
    return Reader(" ".join(filter(None, (chosen["memory"], rule))), loaded)


def measure(recall: Recall, checkpoint: Checkpoint, model: str, tasks: Sequence[str], quick: bool) -> None:
    """The tasks with the default memory, and their controls."""
    slots, window = offer_reader(model, "slots"), window_reader(checkpoint)
    if "passkey" in tasks:
        recall.passkey_by_depth(slots, 8_192 if quick else 32_768, 1 if quick else 3)
        recall.passkey(window, 4_096, 5)
    if "needle" in tasks:
        recall.needles(slots, 4_096 if quick else 32_768, 5 if quick else 20, 1 if quick else 4)
        recall.needles(window, 4_096, 5, 1)
    if "multikey" in tasks:
        recall.multikey(slots, 4_096 if quick else 16_384, 1 if quick else 5)
    if "rewrite" in tasks:
        recall.rewrite(slots, 4_096 if quick else 16_384, 1 if quick else 5)
    if "facts" in tasks:
        rounds = 1 if quick else 5
        recall.facts(full_attention_reader(checkpoint, COMPARED + 600), COMPARED, rounds)
        for length in (4_096, 8_192) if quick else (4_096, 8_192, 32_768):
            recall.facts(slots, length, rounds)
    if "nll" in tasks:
        for reader in (window, window_reader(checkpoint, slots.model.decoder.memory.config), slots):
            recall.nll(reader, 4_096 if quick else 8_192)


def table(results: Sequence[Result]) -> Table:
    """The results for people."""
    shown = Table(title="What a session still knows")
    for name in ("task", "tokens", "memory", "state MiB", "trials", "result"):
        shown.add_column(name, justify="left" if name in ("task", "memory") else "right")
    for one in results:
        figure = f"{one.accuracy:.3f} nats" if one.task == "nll" else f"{one.accuracy:.0%}"
        size = f"{one.state_bytes / 2**20:.1f}"
        shown.add_row(one.task, f"{one.length:,}", one.mechanism, size, f"{one.trials:,}", figure)
    return shown


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description="Measure what a session still knows.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--book", type=Path, help="a long plain text as haystack; default: generated prose")
    parser.add_argument("--quick", action="store_true", help="short lengths, few trials")
    parser.add_argument("--only", nargs="*", choices=TASKS)
    parser.add_argument("--offer", help="only this memory, on passkeys at the start, in the middle and at the end")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32_768], help="tokens, with --offer")
    parser.add_argument("--trials", type=int, default=10, help="at each length and depth, with --offer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 200_000)
    recall = Recall(checkpoint, book, options.out)
    if options.offer:
        reader = offer_reader(options.model, options.offer)
        for length in options.lengths:
            recall.passkey_by_depth(reader, length, options.trials)
        return
    measure(recall, checkpoint, options.model, options.only or TASKS, options.quick)
    Console().print(table(recall.results))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
