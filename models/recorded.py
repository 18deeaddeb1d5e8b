"""Decode steps recorded once for each number of sessions, and played again: on CUDA, graphs, which spare a thousand launches.

A step that is played reads its tokens and rows from tensors of its own, and works on the slab where that lies. Where there are
fewer sessions than it was recorded for, the rest are a spare row. Never run on a GPU by us: `bench/cuda.py` is what would measure
it; what is recorded, and with whom, is tested on the CPU, where playing is calling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.state import MemoryState
from models.transformer import Decoder

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of sessions that are recorded."""
_WARM_UP = 3
"""Calls before a capture, so that libraries have their workspaces."""

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes something that does again what a function did."""


@dataclass(frozen=True)
class _Recorded:
    tokens: Tensor
    rows: Tensor
    logits: Tensor
    play: Callable[[], None]


class RecordedSteps:
    """The steps of one decoder, whose memory is `still`, on one slab, of which nobody else uses row `spare`."""

    def __init__(self, decoder: Decoder, slab: MemoryState, spare: int, record: Record | None = None) -> None:
        assert decoder.memory.still
        self._decoder, self._slab, self._spare = decoder, slab, spare
        self._record = record or _graph
        self._by_size: dict[int, _Recorded] = {}

    def suits(self, positions: Sequence[int]) -> bool:
        """Whether sessions that stand there can take one token each this way: not too many, none of whom completes a segment."""
        segment = self._decoder.memory.config.segment
        return len(positions) <= SIZES[-1] and all((position + 1) % segment for position in positions)

    def step(self, tokens: Sequence[int], rows: Sequence[int]) -> Tensor:
        """One token each for the sessions in these rows: wide logits (B, V), which the next step overwrites."""
        size = next(size for size in SIZES if size >= len(rows))
        if size not in self._by_size:
            self._by_size[size] = self._recorded(size)
        found = self._by_size[size]
        short = size - len(rows)
        found.tokens.copy_(torch.tensor([*tokens, *[0] * short])[:, None])
        found.rows.copy_(torch.tensor([*rows, *[self._spare] * short]))
        found.play()
        return found.logits[: len(rows)]

    def _recorded(self, size: int) -> _Recorded:
        device = self._slab.device
        tokens = torch.zeros((size, 1), dtype=torch.int64, device=device)
        rows = torch.full((size,), self._spare, device=device)
        logits = torch.zeros((size, self._decoder.config.vocab_size), dtype=torch.float32, device=device)
        state = self._slab.at(rows)

        def step() -> None:
            logits.copy_(self._decoder.step(tokens, state))

        return _Recorded(tokens, rows, logits, self._record(step))


def _graph(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of it, captured when only the spare row is worked on."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
