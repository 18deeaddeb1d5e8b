"""What a session still knows: `python -m bench.recall [--book PATH] [--quick]`.

Passkey in filler, a seven-digit needle in a book, facts in plain words, and the likelihood of the book itself, each beside its
controls.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from models import probes
from models.config import MemoryConfig
from models.evaluate.evaluation import DEPTHS, Evaluation, mean
from models.evaluate.reading import ROOM, Reader, full_attention_reader, memory_reader, window_reader
from models.evaluate.results import Result, Results
from models.evaluate.trials import Trials
from models.load import Offer, load_offers
from models.quantized import Precision
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "recall.json"
COMPARED = 4_096
"""Tokens at which full attention says which facts the model can answer at all."""
SCORED_FROM = 2_048
"""Tokens that a memory has read when its likelihood begins to count."""
TASKS = ("passkey", "needle", "multikey", "rewrite", "facts", "nll")
BFLOAT16 = "bfloat16"
console = Console(stderr=True)


@dataclass(frozen=True)
class Compared(Result):
    """`of_full` is the share of those facts that full attention finds at 4,096 tokens; None where nothing was compared. `weights`
    is their precision."""

    of_full: float | None = None
    weights: str = BFLOAT16


class Recall(Evaluation):
    """An evaluation whose facts are compared with those that full attention finds."""

    def __init__(self, trials: Trials, results: Results) -> None:
        super().__init__(trials, results)
        self._found_by_all: list[float] = []
        self.weights: dict[str, str] = {}
        """Precision of readers' weights by their names, if not bfloat16."""

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
        of_full = result.of_full if isinstance(result, Compared) else None
        measured = {one.name: getattr(result, one.name) for one in fields(Result)}
        weights = self.weights.get(result.mechanism, BFLOAT16)
        super().add(Compared(**measured, of_full=of_full, weights=weights))

    def nll(self, reader: Reader, length: int) -> None:
        """Likelihood of the book's tokens behind the first 2,048."""
        self.note(reader, "nll", length, reader.losses(self.trials.book[:length])[SCORED_FROM:].tolist(), "")


def offer_reader(model: str, offer: str, weights: str = BFLOAT16) -> Reader:
    """A memory by name, or as `serve --offer` takes it: {"memory": …, "options": {…}, "adapter": "FILE"}; its weights may be
    rounded to int8 or int4. With a "name" beside these its results have that one."""
    chosen: dict[str, Any] = json.loads(offer) if offer.startswith("{") else {"memory": offer}
    adapter = Path(chosen["adapter"]) if "adapter" in chosen else None
    [loaded] = load_offers(
        [Offer(model, chosen["memory"], chosen.get("options", {}), adapter=adapter)],
        dtype=torch.bfloat16,
        quantize=None if weights == BFLOAT16 else cast(Precision, weights),
    ).values()
    return Reader(chosen["name"], loaded) if "name" in chosen else memory_reader(chosen["memory"], loaded)


@dataclass(frozen=True)
class Figures:
    """What is measured of one reader: `offer` is a memory as `offer_reader` takes it, `window` alone, or behind `LIKE` a memory
    whose window is measured alone."""

    offer: str
    task: str
    length: int
    trials: int


FACTS = len(probes.FACTS)
LIKE = "window like "


def _offered(memory: str, name: str | None = None, **options: int) -> str:
    return json.dumps({"memory": memory, "options": options} | ({} if name is None else {"name": name}))


ROOMY = _offered("memorizing", entries=32_768)
"""As it is taught it has room for 8,192 tokens."""
CONTINUOUS = _offered("continuous", window=128, segment=128)
COMPRESSIVE = _offered("compressive", entries=16_384, window=128, segment=128)
FEEDBACK = _offered("feedback", window=64, segment=64)
"""These three in the small windows in which they were taught passkeys: what is not in the window, the memory has to know."""
WIDE_CONTINUOUS = _offered("continuous", f"continuous in {MemoryConfig.window}")
WIDE_COMPRESSIVE = _offered("compressive", f"compressive in {MemoryConfig.window}", entries=16_384)
WIDE_FEEDBACK = _offered("feedback", f"feedback in {MemoryConfig.window}")
"""The same in the window that is served unless another is asked for: text must not be the worse for it there either."""
UNROUNDED = json.dumps({"memory": "slots", "options": {"slot_dtype": "bf16"}, "name": "slots in bf16"})
"""What slots lose by being rounded to eight bits is measured beside these."""
LEARNED = ("infini", ROOMY, CONTINUOUS, COMPRESSIVE, FEEDBACK)
"""Those that have an adapter in the package."""
READING = (
    "window",
    *(f"{LIKE}{offer}" for offer in ("slots", CONTINUOUS, FEEDBACK, WIDE_CONTINUOUS, WIDE_FEEDBACK)),
    *("slots", UNROUNDED, *LEARNED, WIDE_CONTINUOUS, WIDE_COMPRESSIVE, WIDE_FEEDBACK),
)
"""Whose likelihood is measured."""
QUICK = (
    Figures("slots", "passkey", 32_768, 1),
    Figures("infini", "passkey", 32_768, 1),
    Figures("window", "passkey", 4_096, 5),
    Figures("slots", "needle", 32_768, 2),
    Figures("slots", "multikey", 16_384, 4),
    Figures("slots", "rewrite", 16_384, 4),
    *(Figures("slots", "facts", length, FACTS) for length in (4_096, 8_192, 32_768)),
    *(Figures(offer, "nll", 4_096, 1) for offer in READING),
)
"""What ten minutes on two cores are enough for."""
WHOLE = (
    *(
        Figures(offer, "facts", length, 5 * FACTS)
        for offer in ("slots", UNROUNDED)
        for length in (4_096, 8_192, 32_768)
    ),
    *(Figures(offer, "nll", 8_192, 1) for offer in READING),
    *(Figures(offer, task, 16_384, 20) for offer in ("slots", UNROUNDED) for task in ("multikey", "rewrite")),
    Figures("window", "passkey", 4_096, 5),
    Figures("window", "needle", 4_096, 5),
    *(Figures(offer, "passkey", 32_768, 10) for offer in ("slots", *LEARNED)),
    *(Figures("slots", "needle", length, 20) for length in (32_768, 131_072, 160_000)),
    *(Figures(offer, "passkey", 65_536, 1) for offer in (ROOMY, COMPRESSIVE)),
    *(Figures(offer, "passkey", 131_072, 10) for offer in ("slots", "infini", FEEDBACK)),
    *(Figures(offer, "passkey", 262_144, 1) for offer in (CONTINUOUS, FEEDBACK)),
    *(Figures(offer, "passkey", 1_048_576, 1) for offer in ("slots", "infini")),
)
"""Shortest first: the whole takes a night."""


class Measuring:
    """The readers of one run, each loaded when it is first asked for."""

    def __init__(
        self, recall: Recall, checkpoint: Checkpoint, model: str, *, missing: bool, weights: str = BFLOAT16
    ) -> None:
        self._recall, self._checkpoint, self._model, self._missing = recall, checkpoint, model, missing
        self._weights = weights
        self._readers: dict[str, Reader] = {}
        self._all_attended = False

    def measure(self, figures: Sequence[Figures]) -> None:
        """One after the other. What the file has already is left out where only the missing is wanted."""
        for one in figures:
            reader, recall = self._reader(one.offer), self._recall
            depths = list(DEPTHS) if one.task == "passkey" and one.offer != "window" else ["spread"]
            if one.task == "nll":
                depths = [""]
            due = [depth for depth in depths if not (self._missing and self._has(reader, one, depth))]
            if not due:
                continue
            if one.task != "passkey" and len(recall.trials.book) < one.length:
                console.print(
                    f"{one.task} at {one.length:,} is left out: the book has {len(recall.trials.book):,} tokens"
                )
                continue
            if one.task == "passkey" and due == ["spread"]:
                recall.passkey(reader, one.length, one.trials)
            elif one.task == "passkey":
                recall.passkey_by_depth(reader, one.length, one.trials, due)
            elif one.task == "facts":
                self._attend_to_all(one.trials // FACTS)
                recall.facts(reader, one.length, one.trials // FACTS)
            elif one.task == "nll":
                recall.nll(reader, one.length)
            else:
                recall.questions(reader, one.task, one.length, one.trials)

    def _has(self, reader: Reader, one: Figures, depth: str) -> bool:
        """Whether the file has it, of as many trials."""
        counted = one.length - 1 - SCORED_FROM if one.task == "nll" else one.trials
        return self._recall.results.has(reader.name, one.task, one.length, depth, counted)

    def _attend_to_all(self, rounds: int) -> None:
        """Ask full attention, once: what the facts of all others are compared with."""
        if not self._all_attended:
            self._recall.facts(full_attention_reader(self._checkpoint, COMPARED + ROOM), COMPARED, rounds)
            self._all_attended = True

    def _reader(self, offer: str) -> Reader:
        if offer not in self._readers:
            if offer == "window":
                reader = window_reader(self._checkpoint)
            elif offer.startswith(LIKE):
                like = self._reader(offer.removeprefix(LIKE)).model.decoder.memory.config
                reader = window_reader(self._checkpoint, like)
            else:
                reader = offer_reader(self._model, offer, self._weights)
                self._recall.weights[reader.name] = self._weights
            self._readers[offer] = reader
        return self._readers[offer]


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
    parser.add_argument(
        "--book",
        type=Path,
        nargs="+",
        help="a long plain text as haystack, or several, one behind the other; default: generated prose",
    )
    parser.add_argument(
        "--weights",
        choices=(BFLOAT16, "int8", "int4"),
        default=BFLOAT16,
        help="precision of the weights of memories; controls have bfloat16",
    )
    parser.add_argument("--quick", action="store_true", help="short lengths, few trials")
    parser.add_argument("--only", nargs="*", choices=TASKS)
    parser.add_argument(
        "--missing", action="store_true", help="only what the file does not have yet: to go on after a stop"
    )
    parser.add_argument("--offer", help="only this memory, on passkeys at the start, in the middle and at the end")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32_768], help="tokens, with --offer")
    parser.add_argument("--trials", type=int, default=10, help="at each length and depth, with --offer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    books = [book.read_text(encoding="utf-8") for book in options.book or ()]
    book = "\n\n".join(books) if books else probes.prose(random.Random(0), 1_000_000)
    trials = Trials(Tokenizer.of(checkpoint.tokenizer), book)
    recall = Recall(trials, Results(options.out, console.print))
    if options.offer:
        reader = offer_reader(options.model, options.offer, options.weights)
        recall.weights[reader.name] = options.weights
        for length in options.lengths:
            recall.passkey_by_depth(reader, length, options.trials)
        return
    chosen = [one for one in (QUICK if options.quick else WHOLE) if one.task in (options.only or TASKS)]
    Measuring(recall, checkpoint, options.model, missing=options.missing, weights=options.weights).measure(chosen)
    Console().print(table(recall.results.rows))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
