"""What a session still knows: `python -m bench.recall [--book PATH] [--quick]`.

Passkey in filler, a seven-digit needle in a book, facts in plain words, and the likelihood of the book itself, each beside its
controls.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from models.evaluate.evaluation import Evaluation, mean
from models.evaluate.reading import ROOM, Reader, full_attention_reader, memory_reader, window_reader
from models.evaluate.results import Result, Results
from models.evaluate.trials import Trials
from models.load import Offer, load_offers
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "recall.json"
COMPARED = 4_096
"""Tokens at which full attention says which facts the model can answer at all."""
TASKS = ("passkey", "needle", "multikey", "rewrite", "facts", "nll")
console = Console(stderr=True)


@dataclass(frozen=True)
class Compared(Result):
    """`of_full` is the share of those facts that full attention finds at 4,096 tokens; None where nothing was compared."""

    of_full: float | None = None


class Recall(Evaluation):
    """An evaluation whose facts are compared with those that full attention finds."""

    def __init__(self, trials: Trials, results: Results) -> None:
        super().__init__(trials, results)
        self._found_by_all: list[float] = []

    def facts(self, reader: Reader, length: int, rounds: int) -> None:
        """See `Trials.facts`. Full attention over 4,096 tokens comes first: the others are compared with it."""
        right = self.trials.facts(reader, length, rounds)
        if reader.name == "full_attention" and length == COMPARED:
            self._found_by_all = right
        shared = [one for one, found in zip(right, self._found_by_all, strict=False) if found]
        of_full = round(sum(shared) / len(shared), 4) if shared else None
        self.add(Compared(**asdict(mean(reader, "facts", length, right)), of_full=of_full))

    def add(self, result: Result) -> None:
        """Add a row."""
        super().add(result if isinstance(result, Compared) else Compared(**asdict(result)))

    def nll(self, reader: Reader, length: int) -> None:
        """Likelihood of the book's tokens from the 2,048th on."""
        self.note(reader, "nll", length, reader.losses(self.trials.book[:length])[2048:].tolist(), "")


def offer_reader(model: str, offer: str) -> Reader:
    """A memory by name, or as `serve --offer` takes it: {"memory": …, "options": {…}, "adapter": "FILE"}."""
    chosen: dict[str, Any] = json.loads(offer) if offer.startswith("{") else {"memory": offer}
    adapter = Path(chosen["adapter"]) if "adapter" in chosen else None
    [loaded] = load_offers(
        [Offer(model, chosen["memory"], chosen.get("options", {}), adapter=adapter)], dtype=torch.bfloat16
    ).values()
    return memory_reader(chosen["memory"], loaded)


def measure(recall: Recall, checkpoint: Checkpoint, model: str, tasks: Sequence[str], quick: bool) -> None:
    """The tasks with the default memory, and their controls."""
    slots, window = offer_reader(model, "slots"), window_reader(checkpoint)
    if "passkey" in tasks:
        recall.passkey_by_depth(slots, 8_192 if quick else 32_768, 1 if quick else 3)
        recall.note(window, "passkey", 4_096, recall.trials.passkey(window, 4_096, 5))
    if "needle" in tasks:
        recall.questions(slots, "needle", 4_096 if quick else 32_768, 5 if quick else 20)
        recall.questions(window, "needle", 4_096, 5)
    for task in ("multikey", "rewrite"):
        if task in tasks:
            recall.questions(slots, task, 4_096 if quick else 16_384, 4 if quick else 20)
    if "facts" in tasks:
        rounds = 1 if quick else 5
        recall.facts(full_attention_reader(checkpoint, COMPARED + ROOM), COMPARED, rounds)
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
    trials = Trials(Tokenizer.of(checkpoint.tokenizer), book)
    recall = Recall(trials, Results(options.out, console.print))
    if options.offer:
        reader = offer_reader(options.model, options.offer)
        for length in options.lengths:
            recall.passkey_by_depth(reader, length, options.trials)
        return
    measure(recall, checkpoint, options.model, options.only or TASKS, options.quick)
    Console().print(table(recall.results.rows))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
