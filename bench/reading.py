"""A model that reads and is asked, for the benchmarks: the decoder itself, without a server around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.config import MemoryConfig
from models.load import LoadedModel, assemble, memory_config
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint

CHUNK = 512


class Reader:
    """One mechanism over one checkpoint. States are forked, never changed in place by a question."""

    def __init__(self, name: str, model: LoadedModel) -> None:
        self.name, self.model = name, model

    @property
    def state_bytes(self) -> int:
        """Bytes of one session."""
        return sum(tensor.nbytes for tensor in self.model.kind.spec.values())

    def empty(self) -> MemoryState:
        """A session that has read nothing."""
        return self.model.decoder.empty_state()

    @torch.inference_mode()
    def read(self, state: MemoryState, tokens: Sequence[int]) -> MemoryState:
        """Take tokens in; `state` is consumed."""
        for begin in range(0, len(tokens), CHUNK):
            self.model.decoder(torch.tensor([tokens[begin : begin + CHUNK]]), state)
        return state

    @torch.inference_mode()
    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        """Greedy continuation of `count` tokens behind a question; `state` stays as it is."""
        asked = self.read(state.clone(), question)
        answer: list[int] = []
        while len(answer) < count:
            answer.append(int(self.model.decoder.read_out(asked.read("hidden"))[0].argmax()))
            self.read(asked, answer[-1:])
        return answer

    @torch.inference_mode()
    def losses(self, tokens: Sequence[int]) -> torch.Tensor:
        """Negative log-likelihood in nats of every token but the first, (len(tokens) - 1,)."""
        state, parts = self.empty(), []
        for begin in range(0, len(tokens) - 1, CHUNK):
            chunk = torch.tensor([tokens[begin : min(begin + CHUNK, len(tokens) - 1)]])
            logits, state = self.model.decoder(chunk, state, logits="all")
            wanted = torch.tensor(tokens[begin + 1 : begin + 1 + chunk.shape[1]])
            parts.append(torch.nn.functional.cross_entropy(logits[0], wanted, reduction="none"))
        return torch.cat(parts)


def window_reader(checkpoint: Checkpoint, like: MemoryConfig | None = None) -> Reader:
    """Only the window: its own default, or one as wide as that of another memory."""
    options = {} if like is None else {"window": like.window, "segment": like.segment}
    name = "window" if like is None else f"window {like.window}"
    return Reader(name, assemble(checkpoint, memory_config(checkpoint, "window", options), "window"))


def full_attention_reader(checkpoint: Checkpoint, length: int) -> Reader:
    """Exact attention over everything: a window that nothing ever leaves."""
    segment = MemoryConfig().segment
    wide = -(-length // segment) * segment
    config = MemoryConfig(window=wide, segment=segment)
    return Reader("full_attention", assemble(checkpoint, config, "window"))
