"""kvpress beside slots: `python -m bench.presses [--book PATH]`. Facts in plain words, on the same trials, in as many bytes.

Presses read the whole text with full attention before they drop anything, which a stream cannot; the question comes after that.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from bench.presses.chosen import presses
from bench.presses.reader import PressReader, give_tokenizer
from bench.recall import COMPARED, RESULTS, Recall, offer_reader
from bench.transformers_model import of_transformers
from models.evaluate.reading import ROOM, full_attention_reader
from models.evaluate.results import Results
from models.evaluate.trials import Trials
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint
from models.weights.hub import DEFAULT_MODEL

console = Console(stderr=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.presses", description="kvpress beside slots.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--book", type=Path, help="a long plain text as haystack; default: generated prose")
    parser.add_argument("--rounds", type=int, default=5, help="of all fourteen facts, at each length")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4_096, 8_192], help="tokens")
    parser.add_argument("--only", nargs="*", help="only these presses")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 200_000)
    recall = Recall(Trials(Tokenizer.of(checkpoint.tokenizer), book), Results(options.out, console.print))
    slots, chosen = offer_reader(options.model, "slots"), presses(checkpoint)
    if unknown := sorted(set(options.only or ()) - set(chosen)):
        parser.error(f"no press is called {', '.join(unknown)}; there are {', '.join(chosen)}")
    with TemporaryDirectory() as folder:
        theirs = of_transformers(checkpoint)
        give_tokenizer(theirs, checkpoint, Path(folder))
        recall.facts(full_attention_reader(checkpoint, COMPARED + ROOM), COMPARED, options.rounds)
        for length in options.lengths:
            recall.facts(slots, length, options.rounds)
            for name in options.only or chosen:
                reader = PressReader(f"kvpress {name}", slots.model, theirs, chosen[name], slots.state_bytes)
                recall.facts(reader, length, options.rounds)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
