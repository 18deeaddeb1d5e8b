"""A small continuous memory, and what is done with it by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.asked import Asked, Beside
from models.config import ModelConfig
from models.memory.continuous import Continuous, ContinuousConfig
from models.state import MemoryState
from tests.models.memory.evictions import evicted

SIZE, SEGMENT, HEADS, KV_HEADS = 8, 64, 4, 2
MODEL = ModelConfig(32, 32, 16, 2, HEADS, KV_HEADS, SIZE, 1e-5, 1e4, 512, True)


def config(**changes: Any) -> ContinuousConfig:
    small = {"window": 64, "segment": SEGMENT, "sinks": 0, "basis": 64, "samples": 64, "widths": (0.02, 0.04)}
    return ContinuousConfig(**{**small, "ridge": 1e-3, **changes})


def memory(**changes: Any) -> Continuous:
    return Continuous(MODEL, config(**changes), torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fold(continuous: Continuous, state: MemoryState, start: int, keys: Tensor, values: Tensor, layer: int = 0) -> None:
    """Evict keys and values (K, S, d) of the segment that begins at `start`."""
    continuous.fold(layer, state, evicted(keys[None], values[None], start, sinks=continuous.config.sinks))


def fold_all(continuous: Continuous, keys: Tensor, values: Tensor) -> MemoryState:
    """Evict every whole segment of keys and values (K, n, d)."""
    state = MemoryState.empty(continuous.spec(), 1)
    for start in range(0, keys.shape[1], SEGMENT):
        fold(continuous, state, start, keys[:, start : start + SEGMENT], values[:, start : start + SEGMENT])
    return state


def segments(*numbers: float) -> Tensor:
    """Segments of equal tokens, each filled with its number: (K, n, d)."""
    return torch.tensor(numbers, dtype=torch.float64).repeat_interleave(SEGMENT)[:, None].expand(KV_HEADS, -1, SIZE)


def asked(query: Tensor, *folded: int) -> Asked:
    """Queries (B, K, G, t, d) of sessions that have evicted so many tokens."""
    turn = torch.ones(1, 1, 1, SIZE // 2)
    return Asked(query, query, turn, 0 * turn, list(folded), list(folded))


def read(continuous: Continuous, state: MemoryState, query: Tensor, *folded: int) -> Beside:
    found = continuous.read(0, state, asked(query, *(folded or [SEGMENT])))
    assert isinstance(found, Beside)
    return found


def look(continuous: Continuous, mean: float, deviation: float) -> None:
    """Make every query of every head look at one place, whatever the keys are."""
    with torch.no_grad():
        for weight in (continuous.mean, continuous.spread):
            weight.zero_()
        continuous.mean_bias.fill_(math.log(mean / (1 - mean)))
        continuous.spread_bias.fill_(math.log(math.expm1(deviation**2)))


def signal(continuous: Continuous, state: MemoryState, positions: Tensor, name: str = "values") -> Tensor:
    """X(t) of the first head of layer 0, one channel: written out anew, (n,)."""
    widths = continuous.config.widths
    count = continuous.config.basis // len(widths)
    total = torch.zeros_like(positions)
    for index, weight in enumerate(state.read(f"continuous_{name}")[0, 0, 0, :, 0]):
        centre, width = (index // len(widths)) / (count - 1), widths[index % len(widths)]
        total += weight * torch.exp(-((positions - centre) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    return total
