"""What a fold and a read cost, apart from everything else a decoder does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from models.asked import Asked, Beside, Recent
from models.attention import attend, attend_beside, attend_jointly
from models.evaluate.reading import Reader
from models.memory.base import Evicted, Finished
from models.state import MemoryState

REPEATS = 9


@torch.inference_mode()
def fold_ms(reader: Reader, full: MemoryState) -> float:
    """Milliseconds in which all layers take one segment in; median."""
    decoder = reader.model.decoder
    config, model = decoder.memory.config, decoder.config
    state = full.clone()
    keys = torch.randn(1, model.num_kv_heads, config.segment + decoder.memory.lookahead, model.head_dim)
    values = torch.randn(1, model.num_kv_heads, config.segment, model.head_dim).to(decoder.dtype)
    start = (full.positions[0] - config.ring) // config.segment * config.segment
    starts = torch.tensor([start])
    positions = starts[:, None] + torch.arange(config.segment)
    cos, sin = decoder.weights.rotary.table(positions)
    tokens = torch.zeros(1, config.segment, dtype=torch.int32)
    evicted = Evicted(lambda: (keys, values), tokens, starts, positions >= config.sinks)
    finished = Finished(keys[:, :, : config.segment].to(decoder.dtype), values, cos, sin, starts, [])

    def fold() -> None:
        for index, layer in enumerate(decoder.weights.layers):
            if decoder.memory.follows:
                decoder.memory.finish(index, layer, state, finished)  # type: ignore[arg-type]
            decoder.memory.fold(index, state, evicted)

    return _median(fold) * 1e3


@torch.inference_mode()
def read_us(reader: Reader, full: MemoryState, tokens: int) -> float:
    """Microseconds a token that attention of all layers takes longer for the memory, with `tokens` queries at once; median."""
    decoder = reader.model.decoder
    config, model = decoder.memory.config, decoder.config
    state = full.clone()
    groups = (1, model.num_kv_heads, model.queries_per_kv, tokens, model.head_dim)
    query = torch.randn(groups).to(decoder.dtype)
    far = decoder.weights.rotary.table(torch.tensor([[config.window]]))
    at = full.positions[0] // config.segment * config.segment
    behind = decoder.memory.looks_back + tokens
    keys_behind = torch.randn(1, model.num_kv_heads, behind, model.head_dim)
    recent = Recent(keys_behind, torch.ones(1, behind, dtype=torch.bool))
    asked = [
        Asked(query, query, *far, [at - config.window], [at], recent=lambda: recent) for _ in range(model.num_layers)
    ]
    places = config.sinks + config.ring
    bias = torch.zeros(1, 1, model.queries_per_kv * tokens, places, dtype=decoder.dtype)

    def near() -> None:
        for index in range(model.num_layers):
            attend(query, state.read("ring_keys", index), state.read("ring_values", index), bias)

    def joined() -> None:
        for index in range(model.num_layers):
            keys, values = state.read("ring_keys", index), state.read("ring_values", index)
            found = decoder.memory.read(index, state, asked[index])
            heads = found.heads if found is not None else []
            others = [head for head in range(model.num_kv_heads) if head not in heads]
            if others:
                attend(query[:, others], keys[:, others], values[:, others], bias)
            if isinstance(found, Beside):
                attend_beside(query[:, heads], keys[:, heads], values[:, heads], bias, found)
            elif found is not None:
                away = asked[index].far[:, heads]
                attend_jointly(query[:, heads], keys[:, heads], values[:, heads], bias, away, found)

    alone, together = [], []
    for _ in range(REPEATS):  # in turn, so that a noisy neighbour meets both
        alone.append(_seconds(near))
        together.append(_seconds(joined))
    return (statistics.median(together) - statistics.median(alone)) / tokens * 1e6


def _median(work: Callable[[], None]) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
