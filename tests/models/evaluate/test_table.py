"""A memory stands beside its controls."""

from __future__ import annotations

import io

from rich.console import Console

from models.evaluate.results import Result
from models.evaluate.table import table


def test_each_mechanism_has_a_column_and_what_was_not_measured_is_a_dash() -> None:
    results = [
        Result("slots", "passkey", 2_048, "start", 3, 0.6667, 2**20),
        Result("window 384", "passkey", 2_048, "start", 3, 0.0, 2**19),
        Result("slots", "nll", 2_048, "0-512", 511, 3.21, 2**20),
        Result("full_attention", "multivalue", 2_048, "spread", 4, 0.25, 2**20),
    ]
    out = io.StringIO()
    Console(file=out, width=80).print(table(results))
    lines = out.getvalue().splitlines()
    passkey = next(line for line in lines if "passkey" in line)
    nll = next(line for line in lines if "0-512" in line)
    assert "67%" in passkey
    assert "0%" in passkey.split("67%")[1]
    assert "3.210" in nll
    assert "–" in nll.split("3.210")[1]
    assert any("multivalue" in line and "25%" in line for line in lines)
    assert any("1.0 MiB" in line and "0.5 MiB" in line for line in lines)
