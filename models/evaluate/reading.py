"""A model that reads and is asked: the decoder and the sampler of the server, without a server around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.config import MemoryConfig
from models.load import LoadedModel, assemble, memory_config
from models.sampling import Sampler, Sampling
from models.state import MemoryState, spec_nbytes
from models.transformer import Weights
from models.weights.checkpoint import Checkpoint

CHUNK = 512
ROOM = 600
"""Tokens that a text may grow by what is hidden in it, the question and the answer."""
_GREEDY = Sampling(temperature=0)


class Reader:
    """One mechanism over one checkpoint. States are forked, never changed in place by a question."""

    def __init__(self, name: str, model: LoadedModel) -> None:
        self.name, self.model = name, model

    @property
    def state_bytes(self) -> int:
        """Bytes of one session."""
        return spec_nbytes(self.model.kind.spec)

    def empty(self) -> MemoryState:
        """A session that has read nothing."""
        return self.model.decoder.empty_state()

    @torch.inference_mode()
    def read(self, state: MemoryState, tokens: Sequence[int]) -> MemoryState:
        """Take tokens in; `state` is consumed."""
        for begin in range(0, len(tokens), CHUNK):
            chunk = self._tensor(tokens[begin : begin + CHUNK])[None]
            self.model.decoder.read_through(chunk, state, ahead=len(tokens) - begin - chunk.shape[1])
        return state

    @torch.inference_mode()
    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        """Greedy continuation behind a question, as it is served: `count` tokens, or fewer where the model ends its turn.

        `state` stays as it is.
        """
        asked, sampler = self.read(state.clone(), question), Sampler(_GREEDY)
        answer: list[int] = []
        while len(answer) < count:
            scores = self.model.decoder.read_out(asked.read("hidden"))[0]
            token = sampler.sample(scores, self._tensor(answer)).token
            if token in self.model.tokenizer.eos_ids:
                break
            answer.append(token)
            self.read(asked, answer[-1:])
        return answer

    @torch.inference_mode()
    def losses(self, tokens: Sequence[int]) -> torch.Tensor:
        """Negative log-likelihood in nats of every token but the first, (len(tokens) - 1,)."""
        state, parts = self.empty(), []
        for begin in range(0, len(tokens) - 1, CHUNK):
            chunk = self._tensor(tokens[begin : min(begin + CHUNK, len(tokens) - 1)])[None]
            logits, state = self.model.decoder(chunk, state, logits="all")
            wanted = self._tensor(tokens[begin + 1 : begin + 1 + chunk.shape[1]])
            parts.append(torch.nn.functional.cross_entropy(logits[0], wanted, reduction="none"))
        return torch.cat(parts)

    @torch.inference_mode()
    def log_probabilities(self, tokens: Sequence[int]) -> Tensor:
        """Of every token of the vocabulary behind each of a short text's tokens but the last, (len(tokens) - 1, V), wide."""
        logits, _ = self.model.decoder(self._tensor(tokens[:-1])[None], self.empty(), logits="all")
        found: Tensor = logits[0].log_softmax(dim=-1)
        return found

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.int64, device=self.model.decoder.device)


def memory_reader(memory: str, model: LoadedModel) -> Reader:
    """A model with a memory, named by it, and by its rule where it has several."""
    rule = getattr(model.decoder.memory.config, "rule", "")
    return Reader(f"{memory} {rule}".rstrip(), model)


def window_reader(checkpoint: Checkpoint, like: MemoryConfig | None = None, weights: Weights | None = None) -> Reader:
    """Only the window: its own default, or one as wide as that of another memory, which tokens leave in segments as large as
    there: a query sees up to a segment more than the window."""
    options = {} if like is None else {"window": like.window, "segment": like.segment}
    name = "window" if like is None else f"window {like.window} by {like.segment}"
    return Reader(name, assemble(checkpoint, memory_config(checkpoint, "window", options), "window", weights=weights))


def full_attention_reader(checkpoint: Checkpoint, length: int, weights: Weights | None = None) -> Reader:
    """Exact attention over everything: a window that nothing ever leaves."""
    segment = MemoryConfig().segment
    wide = -(-length // segment) * segment
    config = MemoryConfig(window=wide, segment=segment)
    return Reader("full_attention", assemble(checkpoint, config, "window", weights=weights))
