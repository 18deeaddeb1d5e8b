"""A queue of keys and values: the newest stay, in places that follow from their number alone."""

from __future__ import annotations

import pytest
import torch

from models.memory.fifo import Fifo
from models.state import MemoryState

SIZE = 4
HEADS = 2


def queue(entries: int, *, rate: int = 1, sinks: int = 0) -> tuple[Fifo, MemoryState]:
    fifo = Fifo("kept", {5: 0, 7: 1}, HEADS, entries, rate=rate, sinks=sinks)
    return fifo, MemoryState.empty(fifo.spec(SIZE, torch.float32), 1)


def push(fifo: Fifo, state: MemoryState, start: int, numbers: list[int]) -> None:
    keys = torch.tensor(numbers).float()[None, None, :, None].expand(1, HEADS, -1, SIZE)
    fifo.push(1, state, torch.tensor([start]), keys, -keys)


def held(fifo: Fifo, state: MemoryState, folded: int) -> list[float]:
    keys, values = fifo.read(1, state, fifo.filled(folded))
    assert torch.equal(keys, -values)
    return sorted(keys[0, 0, :, 0].tolist())


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_the_newest_stay_however_they_come(cut: int) -> None:
    fifo, state = queue(5)
    for begin in range(0, 12, cut):
        push(fifo, state, begin, list(range(begin, begin + cut)))
    assert held(fifo, state, 12) == [7, 8, 9, 10, 11]
    assert fifo.filled(12) == 5


def test_until_it_is_full_it_fills_from_the_front() -> None:
    fifo, state = queue(8)
    push(fifo, state, 0, [10, 11, 12])
    assert fifo.filled(0) == 0
    assert held(fifo, state, 3) == [10, 11, 12]
    assert not state.read("kept_keys", 0).any()  # another layer's


def test_groups_of_sinks_are_never_seen() -> None:
    fifo, state = queue(6, rate=2, sinks=5)  # two groups of sinks alone, one of a sink and a token
    push(fifo, state, 0, [0, 1, 2, 3])
    assert fifo.filled(4) == 0
    assert held(fifo, state, 8) == [2, 3]
    push(fifo, state, 8, [4, 5, 6, 7])
    assert held(fifo, state, 16) == [2, 3, 4, 5, 6, 7]


def test_it_reports_what_is_in_use() -> None:
    fifo, _ = queue(6)
    report = fifo.report(4)
    assert [(layer.layer, layer.slots, layer.used) for layer in report.layers] == [(5, 6, 4 * HEADS), (7, 6, 4 * HEADS)]
