"""The comparison of memories: every mechanism is in it, its table is the one in the docs, its costs can be measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench.memory.equal import equal_bytes
from bench.memory.report import DOCS, table, with_table
from bench.memory.timing import fold_ms, read_us
from bench.memory.variants import VARIANTS
from models.evaluate.reading import Reader
from models.load import assemble, memory_config
from models.memory import MECHANISMS
from models.weights.checkpoint import load_checkpoint

RESULTS = Path(__file__).parent.parent.parent / "bench" / "results" / "memory.json"
FIELDS = {
    "mechanism",
    "variant",
    "state_bytes",
    "memory_bytes",
    "fold_ms",
    "read_us_per_token",
    "nll",
    "window_nll",
    "passkey",
    "needle",
}


def test_every_mechanism_has_a_row_and_every_variant_a_result() -> None:
    assert {one.mechanism for one in VARIANTS} == set(MECHANISMS)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {(row["mechanism"], row["variant"]) for row in rows} == {(one.mechanism, one.variant) for one in VARIANTS}
    for row in rows:
        assert set(row) == FIELDS
        assert row["passkey"].keys() == row["needle"].keys() != set()


def test_the_docs_have_the_table_of_the_results() -> None:
    assert DOCS.read_text(encoding="utf-8") == with_table(RESULTS)


def test_a_table_names_lengths_that_were_not_measured() -> None:
    row = {"mechanism": "window", "variant": "", "state_bytes": 2**20, "memory_bytes": 0, "fold_ms": 1.0}
    row |= {"read_us_per_token": 0.0, "nll": 3.0, "window_nll": 3.0, "passkey": {"1024": 0.5}, "needle": {"1024": 1.0}}
    longer = {**row, "mechanism": "slots", "passkey": {"1024": 1.0, "4096": 1.0}, "needle": {"1024": 1.0, "4096": 0.25}}
    lines = table([longer, row]).splitlines()
    assert lines[2].startswith("| `window` | 0.00 MiB | 1.0 MiB | 1.0 | 0 | 3.000 | +0.000 | 50% | – | 100% | – |")
    assert lines[3].count("100%") == 3


@pytest.mark.parametrize("memory", sorted(set(MECHANISMS) - {"slots"}))
def test_costs_of_every_mechanism_can_be_measured(tiny_model: Path, memory: str) -> None:
    checkpoint = load_checkpoint(str(tiny_model))
    options = {"window": 32, "segment": 16, **({"tokens": 4} if memory == "feedback" else {})}
    reader = Reader(memory, assemble(checkpoint, memory_config(checkpoint, memory, options), memory))
    full = reader.read(reader.empty(), torch.arange(100).tolist())
    before = {name: tensor.clone() for name, tensor in full.tensors().items()}
    assert fold_ms(reader, full) > 0
    assert math.isfinite(read_us(reader, full, 20))  # a difference of two measurements: noise may make it negative
    assert all(torch.equal(before[name], tensor) for name, tensor in full.tensors().items())


def test_equal_bytes_lie_between_the_queues_around_the_likelihood() -> None:
    rows = [{"memory": "memorizing", "memory_bytes": size, "nll": nll} for size, nll in ((100, 2.0), (1600, 1.8))]
    assert equal_bytes(rows, 1.9) == pytest.approx(400)
    assert equal_bytes(rows, 2.1) is None
    assert equal_bytes(rows, 1.7) is None
