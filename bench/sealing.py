"""What a saved state weighs in a store, and what that costs: `python -m bench.sealing [--book PATH]`.

States of the served model after so many tokens, compressed in several ways, then sealed as the stores do it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard
from rich.console import Console
from rich.table import Table

from models.codec import encode_state
from models.load import LoadedModel, load_model
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL
from server.store.sealing import EncryptingSealer, PlainSealer, Sealer

RESULTS = Path(__file__).parent / "results" / "sealing.json"
LENGTHS = (0, 100, 600, 4_000)
LEVELS = (-3, 1, 3)
_CHUNK = 256
_ROUNDS = 5
_ABOUT = ("bench", "sess_bench", "snapshot", 1)
_KEY = bytes(range(32))


@dataclass(frozen=True)
class Result:
    """One way to store the state after `tokens`. Milliseconds are the least of a few rounds."""

    tokens: int
    way: str
    size: int
    ratio: float
    store_ms: float
    restore_ms: float


def states(model: LoadedModel, text: str) -> Iterator[tuple[int, bytes]]:
    """One session, saved at each of `LENGTHS`."""
    tokens = model.tokenizer.encode(text)[: LENGTHS[-1]]
    state, read = model.decoder.empty_state(), 0
    for length in LENGTHS:
        while read < length:
            chunk = tokens[read : min(read + _CHUNK, length)]
            with torch.inference_mode():
                model.decoder(torch.tensor([chunk]), state)
            read += len(chunk)
        yield length, encode_state(state, model.kind)


def measure(tokens: int, content: bytes) -> Iterator[Result]:
    """Every way to store one state."""
    for level in LEVELS:
        yield _result(tokens, f"zstd {level}", content, *_zstd(level, shuffled=False))
    yield _result(tokens, "zstd 1, bytes shuffled", content, *_zstd(1, shuffled=True))
    sealers: dict[str, Sealer] = {"sealed plain": PlainSealer(), "sealed encrypted": EncryptingSealer({"bench": _KEY})}
    for way, sealer in sealers.items():
        yield _result(tokens, way, content, *_sealed(sealer))


Change = Callable[[bytes], bytes]


def _sealed(sealer: Sealer) -> tuple[Change, Change]:
    return lambda content: sealer.seal(content, _ABOUT), lambda sealed: sealer.open(sealed, _ABOUT)


def _zstd(level: int, *, shuffled: bool) -> tuple[Change, Change]:
    compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    if not shuffled:
        return compressor.compress, decompressor.decompress
    return (
        lambda content: compressor.compress(_transposed(content, apart=True)),
        lambda frame: _transposed(decompressor.decompress(frame), apart=False),
    )


def _transposed(content: bytes, *, apart: bool) -> bytes:
    """First and second bytes of each pair apart, or together again: those of bf16 are of two kinds."""
    whole = len(content) // 2 * 2
    pairs = np.frombuffer(content, np.uint8, whole).reshape((-1, 2) if apart else (2, -1))
    return np.ascontiguousarray(pairs.T).tobytes() + content[whole:]


def _result(tokens: int, way: str, content: bytes, store: Change, restore: Change) -> Result:
    store_ms, stored = _timed(store, content)
    restore_ms, restored = _timed(restore, stored)
    if restored != content:
        raise RuntimeError(f"{way}: the state came back altered")
    return Result(tokens, way, len(stored), round(len(stored) / len(content), 4), store_ms, restore_ms)


def _timed(change: Change, content: bytes) -> tuple[float, bytes]:
    least = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        changed = change(content)
        least = min(least, time.perf_counter() - begin)
    return round(least * 1e3, 1), changed


def table(results: list[Result]) -> Table:
    """For people to read."""
    shown = Table("tokens", "stored as", "bytes", "ratio", "store, ms", "restore, ms")
    for result in results:
        times = (f"{result.store_ms:.1f}", f"{result.restore_ms:.1f}")
        shown.add_row(f"{result.tokens:,}", result.way, f"{result.size:,}", f"{result.ratio:.3f}", *times)
    return shown


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.sealing", description="Measure what saved states weigh.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--book", type=Path, help="a long plain text to read; default: generated prose")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 40_000)
    model = load_model(options.model)
    results = [result for length, state in states(model, book) for result in measure(length, state)]
    Console().print(table(results))
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
