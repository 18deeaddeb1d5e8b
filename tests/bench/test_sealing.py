from __future__ import annotations

import os

import pytest

from bench.sealing import LEVELS, measure, table


@pytest.mark.parametrize("size", [200_000, 200_001])
def test_every_way_is_measured_and_gives_the_state_back(size: int) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    results = list(measure(7, content))
    assert [result.way for result in results[: len(LEVELS)]] == [f"zstd {level}" for level in LEVELS]
    assert {result.way for result in results[len(LEVELS) :]} == {
        "zstd 1, bytes shuffled",
        "sealed plain",
        "sealed encrypted",
    }
    assert all(0.5 < result.ratio < 0.6 for result in results)
    assert table(results).row_count == len(results)
