"""How many bytes two memories need for the same likelihood of a book: `python -m bench.memory.equal --adapter FILE --book PATH`.

Infini-attention reports that its memory is 114 times smaller than a Memorizing Transformer's of a worse perplexity (arXiv
2404.07143, table 2). Here the same pretrained model reads a book with an `infini` memory that an adapter has taught to it, and
with queues of several lengths, so that the length can be found at which a queue does as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from models.evaluate.reading import Reader
from models.load import Offer, load_offers
from models.state import spec_nbytes
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent.parent / "results" / "equal.json"
SEGMENT = 32
"""Short, so that a queue may be, too: it must have room for one segment."""
QUEUES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LENGTH, SETTLED, STRETCHES = 6_144, 2_048, 4
"""Tokens of a stretch of the book, from which on they count, and how many stretches at even distances."""


def offers(model: str, adapter: Path) -> Iterator[Offer]:
    """The window alone, what the adapter has taught, and queues in the same layers."""
    yield Offer(model, "window", {"segment": SEGMENT})
    yield Offer(model, "infini", {"segment": SEGMENT}, adapter=adapter)
    for entries in QUEUES:
        yield Offer(model, "memorizing", {"segment": SEGMENT, "entries": entries, "top_k": min(32, entries)})


def nats(reader: Reader, book: Sequence[int]) -> float:
    """Nats a token, over the stretches."""
    last = len(book) - LENGTH - 1
    begins = [round(number / (STRETCHES - 1) * last) for number in range(STRETCHES)]
    losses = [reader.losses(book[begin : begin + LENGTH])[SETTLED:] for begin in begins]
    return float(torch.cat(losses).mean())


def equal_bytes(rows: Sequence[Mapping[str, Any]], wanted: float) -> float | None:
    """The bytes at which the queue reaches `wanted` nats, interpolated in the logarithm; None if it never does."""
    queue = sorted((row["memory_bytes"], row["nll"]) for row in rows if row["memory"] == "memorizing")
    for (small, worse), (large, better) in itertools.pairwise(queue):
        if better <= wanted <= worse:
            share = (worse - wanted) / (worse - better) if worse > better else 0.0
            return math.exp(math.log(small) + share * (math.log(large) - math.log(small)))
    return None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory.equal")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--adapter", type=Path, required=True, help="of infini, trained on plain text")
    parser.add_argument("--book", type=Path, required=True, help="a text that nothing was trained on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console, book = Console(), options.book.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for offer in offers(options.model, options.adapter):
        [loaded] = load_offers([offer], dtype=torch.bfloat16).values()
        figures = nats(Reader(offer.memory, loaded), loaded.tokenizer.encode(book))
        size = spec_nbytes(loaded.decoder.memory.spec())
        entries = offer.options.get("entries", 0)
        rows.append({"memory": offer.memory, "entries": entries, "memory_bytes": size, "nll": round(figures, 5)})
        console.print(rows[-1])
    infini = next(row for row in rows if row["memory"] == "infini")
    needed = equal_bytes(rows, infini["nll"])
    ratio = None if needed is None else round(needed / infini["memory_bytes"], 2)
    found = {"rows": rows, "bytes_of_memorizing_over_infini": ratio, "paper": 114}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"{ratio} times the bytes; the paper: 114")


if __name__ == "__main__":
    main()
