"""One mechanism measured: bytes, cost, likelihood of a book, and what it finds again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.memory.timing import fold_ms, read_us
from bench.memory.variants import Variant
from models.evaluate.reading import Reader
from models.evaluate.trials import Trials
from models.load import assemble, memory_config
from models.state import spec_nbytes
from models.tokenizer import Tokenizer
from models.transformer import Weights
from models.weights.checkpoint import Checkpoint

BOOK_TOKENS = 8_192
"""Of the book, for likelihoods; those from `SETTLED` on count."""
SETTLED = 2_048
FULL = 2_560
"""Tokens in a session whose costs are timed: every ring is full and folding."""
PIECE = 256
"""Queries at once when a read is timed: a prefill chunk's piece."""


@dataclass
class Measured:
    """One line of bench/results/memory.json. `passkey` is exact matches, `needle` digits in their places, by tokens."""

    mechanism: str
    variant: str
    state_bytes: int
    memory_bytes: int
    fold_ms: float = 0.0
    read_us_per_token: float = 0.0
    nll: float = 0.0
    window_nll: float = 0.0
    passkey: dict[str, float] = field(default_factory=dict)
    needle: dict[str, float] = field(default_factory=dict)


class Comparison:
    """Measures variants over one checkpoint and one book, and writes down every figure as it comes."""

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, book: str, out: Path, say: Callable[[str], None]
    ) -> None:
        self._checkpoint, self._weights, self._out, self._say = checkpoint, weights, out, say
        self._trials = Trials(Tokenizer.of(checkpoint.tokenizer), book)
        self.rows: list[Measured] = (
            [Measured(**row) for row in json.loads(out.read_text(encoding="utf-8"))] if out.exists() else []
        )

    def reader(self, variant: Variant) -> Reader:
        """The variant's mechanism, ready to read."""
        config = memory_config(self._checkpoint, variant.mechanism, variant.options)
        return Reader(variant.mechanism, assemble(self._checkpoint, config, variant.mechanism, weights=self._weights))

    def row(self, variant: Variant) -> Measured:
        """The variant's line, a new one with its sizes if there is none."""
        spec = self.reader(variant).model.decoder.memory.spec()
        sizes = self.reader(variant).state_bytes, spec_nbytes(spec)
        for row in self.rows:
            if (row.mechanism, row.variant) == (variant.mechanism, variant.variant):
                row.state_bytes, row.memory_bytes = sizes
                return row
        self.rows.append(Measured(variant.mechanism, variant.variant, *sizes))
        return self.rows[-1]

    def likelihood(self, variant: Variant, window_nll: float | None) -> float:
        """Nats a token of the book, noted beside those of the window alone (None: this is the window)."""
        losses = self.reader(variant).losses(self._trials.book[:BOOK_TOKENS])[SETTLED:]
        row = self.row(variant)
        row.nll = round(float(losses.mean()), 4)
        row.window_nll = row.nll if window_nll is None else window_nll
        self._note(variant, f"nll {row.nll} (window {row.window_nll})")
        return row.nll

    def recall(self, variant: Variant, lengths: Sequence[int], trials: int) -> None:
        """Passkeys and needles at the given lengths."""
        reader, row = self.reader(variant), self.row(variant)
        for length in lengths:
            found = self._trials.passkey(reader, length, trials)
            row.passkey[str(length)] = round(sum(found) / len(found), 4)
            self._note(variant, f"passkey at {length}: {row.passkey[str(length)]}")
            digits = self._trials.needles(reader, length, trials, 1)
            row.needle[str(length)] = round(sum(digits) / len(digits), 4)
            self._note(variant, f"needle at {length}: {row.needle[str(length)]}")

    def costs(self, variant: Variant) -> None:
        """What folding and reading take, on a session that is full."""
        reader, row = self.reader(variant), self.row(variant)
        full = reader.read(reader.empty(), self._trials.book[:FULL])
        row.fold_ms = round(fold_ms(reader, full), 3)
        row.read_us_per_token = round(read_us(reader, full, PIECE), 2)
        self._note(variant, f"fold {row.fold_ms} ms, read {row.read_us_per_token} us a token")

    def _note(self, variant: Variant, text: str) -> None:
        self._say(f"{variant.mechanism} {variant.variant}: {text}")
        self._out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in self.rows]
        self._out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
