"""How many bytes two memories need for the same likelihood: `python -m bench.memory.equal --train PATH --book PATH`.

Infini-attention reports that its memory is 114 times smaller than a Memorizing Transformer's of a worse perplexity (arXiv
2404.07143, table 2). Here small byte models read one novel and are judged on another. The memorizing model is trained once and
judged with queues of several lengths, so that the length can be found at which it does as well as `infini`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel, build_small
from models.adapt.tasks.text import Text
from models.adapt.train import Progress, Trainer
from models.memory import MECHANISMS
from models.memory.memorizing import MemorizingConfig
from models.state import spec_nbytes
from models.transformer import Decoder

RESULTS = Path(__file__).parent.parent / "results" / "equal.json"
RING = {"window": 64, "segment": 64, "sinks": 0}
MODEL = SmallModel(layers=2, hidden=96, heads=3, kv_heads=3, inner=256)
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "window": ("window", RING),
    "infini": ("infini", {**RING, "rule": "delta", "gate_init": -1.0}),
    "memorizing": (
        "memorizing",
        {**RING, "layers": (1,), "entries": 1024, "top_k": 32, "gate": "learned", "gate_init": -1.0},
    ),
}
QUEUES = (64, 128, 256, 512, 1024)
SPAN, SPANS, SETTLED = 4_096, 16, 512
"""Bytes of a stretch of the book, how many of them, and from which byte on they count."""


def train(name: str, text: Text, steps: int) -> Decoder:
    """A small byte model over one of the memories."""
    memory, options = MODELS[name]
    decoder = build_small(MODEL, text.vocab_size, memory, options)
    settings = TrainSettings(
        first_segments=8,
        last_segments=8,
        steps=steps,
        batch=8,
        learning_rate=3e-3,
        advance_at=1.0,
        stop_at=1.0,
    )

    def say(progress: Progress) -> None:
        if progress.step % 20 == 0:
            print(f"{name}: step {progress.step}, {progress.loss:.3f} nats, {progress.seconds:.0f} s", flush=True)

    Trainer(decoder, text, settings).run(say)
    return decoder.requires_grad_(False)


@torch.inference_mode()
def nats(decoder: Decoder, book: Text) -> float:
    """Nats a byte, over stretches of the book at even distances."""
    encoded = book.encoded
    starts = torch.linspace(0, len(encoded) - SPAN - 1, SPANS).long()[:, None]
    stretch = encoded[starts + torch.arange(SPAN + 1)]
    state, parts = decoder.empty_state(SPANS), []
    for begin in range(0, SPAN, SETTLED):
        chunk = stretch[:, begin : begin + SETTLED]
        logits, state = decoder(chunk, state, logits="all")
        wanted = stretch[:, begin + 1 : begin + SETTLED + 1]
        parts.append(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(SPANS, -1))
    return float(torch.cat(parts, dim=1)[:, SETTLED:].mean())


def with_queue(decoder: Decoder, entries: int) -> Decoder:
    """The same trained memorizing model with a queue of another length."""
    config = decoder.memory.config
    assert isinstance(config, MemorizingConfig)
    shorter = MECHANISMS["memorizing"].build(
        decoder.config, replace(config, entries=entries, top_k=min(config.top_k, entries)), torch.float32
    )
    shorter.load_state_dict(decoder.memory.state_dict())
    return Decoder(decoder.weights, shorter)


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
    parser.add_argument("--train", type=Path, required=True, help="a text to learn from")
    parser.add_argument("--book", type=Path, required=True, help="another one, to be judged on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text, book = (Text(path.read_text(encoding="utf-8")) for path in (options.train, options.book))
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        decoder = train(name, text, options.steps)
        chosen = [with_queue(decoder, entries) for entries in QUEUES] if name == "memorizing" else [decoder]
        for one in chosen:
            size = spec_nbytes(one.memory.spec())
            entries = getattr(one.memory.config, "entries", 0)
            rows.append({"memory": name, "entries": entries, "memory_bytes": size, "nll": round(nats(one, book), 4)})
            print(rows[-1], flush=True)
    infini = next(row for row in rows if row["memory"] == "infini")
    needed = equal_bytes(rows, infini["nll"])
    ratio = None if needed is None else round(needed / infini["memory_bytes"], 2)
    found = {"steps": options.steps, "rows": rows, "bytes_of_memorizing_over_infini": ratio, "paper": 114}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(found["bytes_of_memorizing_over_infini"])


if __name__ == "__main__":
    main()
