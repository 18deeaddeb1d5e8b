"""An `infini` of two layers with heads of size 2: its folds and its reads, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.asked import Asked, Beside
from models.config import ModelConfig
from models.memory.infini import MECHANISM, Infini, InfiniConfig
from models.state import MemoryState
from tests.models.memory.evictions import evicted

MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    trained_context=512,
    tie_word_embeddings=True,
)
Pair = tuple[Sequence[float], Sequence[float]]
HALF = -math.log(2)  # a feature of one half
WIDE = 40.0  # a gate that leaves nothing to the ring


def settings(**changes: Any) -> InfiniConfig:
    return InfiniConfig(**{"window": 32, "segment": 16, "sinks": 0, "gate_init": WIDE, **changes})


def memory(**changes: Any) -> Infini:
    built = MECHANISM.build(MODEL, settings(**changes), torch.float64)
    assert isinstance(built, Infini)
    return built.requires_grad_(False)


def write(infini: Infini, state: MemoryState, *segments: Sequence[Pair], layer: int = 0) -> None:
    """Fold segments of any length into both key/value heads."""
    start = int(infini.config.sinks)
    for segment in segments:
        keys, values = (torch.tensor([pair[side] for pair in segment], dtype=torch.float64) for side in (0, 1))
        fold(infini, state, keys.expand(1, 2, -1, -1), values.expand(1, 2, -1, -1), start, layer)
        start += len(segment)


def fold(
    infini: Infini,
    state: MemoryState,
    keys: Tensor,
    values: Tensor,
    start: int = 0,
    layer: int = 0,
    counted: Tensor | None = None,
) -> None:
    """Fold keys and values (B, K, S, d); `counted` (B, 1) says otherwise of whole rows than the sinks do."""
    gone = evicted(keys, values, start, sinks=infini.config.sinks)
    if counted is not None:
        gone = replace(gone, counted=counted.expand_as(gone.counted))
    infini.fold(layer, state, gone)


def ask(
    infini: Infini, state: MemoryState, *query: float, folded: Sequence[int] = (16,), layer: int = 0
) -> Beside | None:
    """Every query head asks the same."""
    queries = torch.tensor(query, dtype=torch.float64).expand(len(folded), 2, 2, 1, -1)
    turn = torch.zeros(1, 1, 1, 1)
    found = infini.read(layer, state, Asked(queries, queries, turn, turn, list(folded), list(folded)))
    assert found is None or isinstance(found, Beside)
    return found


def answer(infini: Infini, state: MemoryState, *query: float) -> list[float]:
    """What the memory returns, which is the same for every head."""
    found = ask(infini, state, *query)
    assert found is not None
    assert (found.out == found.out[:, :1, :1]).all()
    values: list[float] = found.out[0, 0, 0, 0].tolist()
    return values


def started(infini: Infini) -> MemoryState:
    return MemoryState.empty(infini.spec(), 1)
