"""Compare every memory on one pretrained model, and write results, table and figure."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from rich.console import Console

from bench.memory.comparison import Comparison
from bench.memory.report import draw, with_table, write_docs
from bench.memory.variants import VARIANTS
from models.load import weights_of
from models.probes import prose
from models.weights.checkpoint import load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent.parent / "results"
STEPS = ("nll", "recall", "costs", "report")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Compare the memories.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--book", type=Path, help="a long plain text; default: generated prose")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1_024, 4_096, 8_192])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="shortest length, two trials")
    parser.add_argument("--only", nargs="*", choices=STEPS, default=STEPS)
    parser.add_argument("--mechanisms", nargs="*", help="only these; the results of the others stay")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.trials = options.lengths[:1], 2
    if options.threads:
        torch.set_num_threads(options.threads)
    if set(options.only) - {"report"}:
        measure(options)
    if "report" in options.only:
        write_docs(with_table(options.out))
        draw(options.out, RESULTS / "memory.png")


def measure(options: argparse.Namespace) -> None:
    """All that takes long."""
    console = Console(stderr=True)
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 60_000)
    comparison = Comparison(
        checkpoint,
        weights_of(checkpoint),
        book,
        options.out,
        lambda text: console.print(f"{time.strftime('%H:%M:%S')} {text}"),
    )
    chosen = [one for one in VARIANTS if not options.mechanisms or one.mechanism in options.mechanisms]
    window = next(one for one in VARIANTS if one.mechanism == "window")
    if "nll" in options.only:
        alone = comparison.likelihood(window, None)
        for variant in chosen:
            if variant is not window:
                comparison.likelihood(variant, alone)
    if "recall" in options.only:
        for variant in chosen:
            comparison.recall(variant, options.lengths, options.trials)
    if "costs" in options.only:
        for variant in chosen:
            comparison.costs(variant)


if __name__ == "__main__":
    main()
