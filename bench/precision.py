"""What each precision of the weights costs: how far next tokens are from those of float32, and how likely a book is.

    python -m bench.precision --book BOOK

reads the same tokens of a book in every precision, over the default memory, and writes `bench/results/precision.json`: nats of KL
divergence from float32's next token and the share of tokens whose likeliest successor is float32's, both means over all tokens, and
nats a token of the book. The same on every run but for the last digits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.load import LoadedModel, Offer, load_offers
from models.quantized import Precision
from models.weights.hub import DEFAULT_MODEL

CHUNK = 256
RESULTS = Path("bench/results/precision.json")
_QUANTIZED: tuple[Precision, ...] = ("int8", "int4")


@dataclass(frozen=True)
class Cost:
    """Of one precision; `tokens` were compared."""

    precision: str
    tokens: int
    kl: float
    same_first_choice: float
    nll: float


def loaded(model: str, memory: str, precision: str) -> LoadedModel:
    """The model with weights of one precision."""
    quantize = next((name for name in _QUANTIZED if name == precision), None)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    [found] = load_offers([Offer(model, memory)], dtype=dtype, quantize=quantize).values()
    return found


@torch.inference_mode()
def foretold(model: LoadedModel, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Log-probabilities of each next token, chunk by chunk: (n, V)."""
    state = model.decoder.empty_state()
    for chunk in torch.tensor([tokens]).split(CHUNK, dim=1):
        logits, state = model.decoder(chunk, state, logits="all")
        yield F.log_softmax(logits[0].float(), dim=-1)


def compare(model: LoadedModel, exact: LoadedModel, precision: str, tokens: Sequence[int]) -> Cost:
    """One precision beside float32."""
    read, following = tokens[:-1], torch.tensor(tokens[1:])
    kl, same, nll, place = 0.0, 0, 0.0, 0
    for ours, truth in zip(foretold(model, read), foretold(exact, read), strict=True):
        kl += float(F.kl_div(ours, truth, reduction="sum", log_target=True))
        same += int((ours.argmax(dim=-1) == truth.argmax(dim=-1)).sum())
        nll += float(F.nll_loss(ours, following[place : place + len(ours)], reduction="sum"))
        place += len(ours)
    return Cost(precision, place, kl / place, same / place, nll / place)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=Path, required=True, help="a plain text")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a path, hf:<repo> or pypi:<wheel>")
    parser.add_argument("--memory", default="slots", help="over which it is read")
    parser.add_argument("--tokens", type=int, default=8192, help="how many of the book's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write")
    options = parser.parse_args(arguments)
    exact = loaded(options.model, options.memory, "float32")
    tokens = exact.tokenizer.encode(options.book.read_text())[: options.tokens + 1]
    costs = []
    for precision in ("float32", "bfloat16", *_QUANTIZED):
        cost = compare(loaded(options.model, options.memory, precision), exact, precision, tokens)
        print(
            f"{precision:9} KL {cost.kl:.5f}, same first choice {cost.same_first_choice:.3f}, {cost.nll:.4f} nats",
            flush=True,
        )
        costs.append(asdict(cost))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
