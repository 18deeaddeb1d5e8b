"""How long a memory keeps a number in a novel: `python -m bench.fading [--offer MEMORY …] [--book PATH]`.

Filler has nothing in it that a memory could take for worth keeping. A novel has, and what a memory has room for ends there first.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from rich.console import Console

from bench.recall import LEARNED, offer_reader
from models.evaluate.evaluation import mean
from models.evaluate.reading import Reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "fading.json"
LENGTHS = (1_024, 2_048, 4_096, 8_192, 16_384)
console = Console(stderr=True)


def measure(reader: Reader, book: str, lengths: list[int], trials: int, results: Results) -> None:
    """A row for each length."""
    found = Trials(reader.model.tokenizer, book).fading(reader, lengths, trials)
    for length, right in zip(lengths, found, strict=True):
        results.add(mean(reader, "passkey", length, right, "in a book"))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.fading", description="How long a number is kept in a book.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument(
        "--offer", nargs="+", default=["slots", *LEARNED], help="memories, as bench.recall takes them; default: all"
    )
    parser.add_argument("--book", type=Path, help="a long plain text; default: generated prose")
    parser.add_argument("--weights", choices=("bfloat16", "int8", "int4"), default="bfloat16")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 400_000)
    results = Results(options.out, console.print)
    for offer in options.offer:
        reader = offer_reader(options.model, offer, options.weights)
        measure(reader, book, sorted(options.lengths), options.trials, results)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
