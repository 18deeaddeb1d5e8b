"""How long a memory keeps a number in a novel: `python -m bench.fading [--offer MEMORY …] [--book PATH]`.

Filler has nothing in it that a memory could take for worth keeping. A novel has, and what a memory has room for ends there first.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench.recall import LEARNED, Recall, offer_reader
from models.errors import ModelsError
from models.evaluate.reading import Reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "fading.json"
LENGTHS = (1_024, 2_048, 4_096, 8_192, 16_384)
console = Console(stderr=True)


def measure(recall: Recall, reader: Reader, lengths: Sequence[int], trials: int) -> None:
    """A row for each length."""
    for length, right in recall.trials.fading(reader, lengths, trials).items():
        recall.note(reader, "passkey", length, right, "in a book")


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
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    recall = Recall(Trials(Tokenizer.of(checkpoint.tokenizer), book), Results(options.out, console.print))
    try:
        for offer in options.offer:
            reader = offer_reader(options.model, offer, options.weights)
            recall.weights[reader.name] = options.weights
            measure(recall, reader, options.lengths, options.trials)
    except ModelsError as error:
        parser.error(str(error))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
