"""What a trained model remembers, and what its controls do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapt.tasks.base import Batch, Task
from models.config import MemoryConfig
from models.memory.window import Window
from models.state import MemoryState
from models.transformer import Decoder

_CHUNK = 512
"""Tokens that are read in one call."""


@dataclass(frozen=True)
class Trials:
    """How many sequences, of which length, drawn from which seed, and how many together.

    Where memories are exchanged, it happens `ahead` tokens before the question, though not before the first fold: what a model
    has read of its own memory stays in its ring for a while, and a second layer can find it there.
    """

    length: int
    count: int = 256
    seed: int = 1_000_003
    batch: int = 64
    ahead: int = 0


def accuracy(decoder: Decoder, task: Task, trials: Trials) -> float:
    """The share of asked tokens that the model names, in sequences that it reads as a server would."""
    return _accuracy(decoder, task, trials, shuffled=False)


def shuffled_accuracy(decoder: Decoder, task: Task, trials: Trials) -> float:
    """The same when the sessions' memories, not their rings, are exchanged among them, `ahead` of the question."""
    return _accuracy(decoder, task, trials, shuffled=True)


def without_memory(decoder: Decoder) -> Decoder:
    """The same weights over the ring alone: what the model knows when it cannot read its memory."""
    config = decoder.memory.config
    ring = MemoryConfig(window=config.window, segment=config.segment, sinks=config.sinks)
    return Decoder(decoder.weights, Window(decoder.config, ring, decoder.dtype))


def folds_behind(config: MemoryConfig, length: int, answer: int) -> int:
    """How many folds lie between the one that took a sequence's first tokens and a question `answer` tokens before its end.

    Negative when that fold has not come yet.
    """
    asked = length - answer
    return (asked // config.segment * config.segment - config.window) // config.segment - 1


def length_for(config: MemoryConfig, folds: int) -> int:
    """The length at which a question in the last segment has its sequence's first tokens that many folds behind it."""
    return config.ring + (folds + 1) * config.segment


def _accuracy(decoder: Decoder, task: Task, trials: Trials, shuffled: bool) -> float:
    generator = torch.Generator().manual_seed(trials.seed)
    right = asked = 0
    with torch.inference_mode():
        for begin in range(0, trials.count, trials.batch):
            batch = task.batch(generator, min(trials.batch, trials.count - begin), trials.length)
            batch = batch.to(decoder.device)
            right += _right(decoder, batch, trials.ahead if shuffled else None)
            asked += int(batch.asked.sum())
    return right / asked


def _right(decoder: Decoder, batch: Batch, ahead: int | None) -> int:
    """Asked tokens that are named, in one batch; memories are exchanged that far ahead of the question, or not."""
    state = decoder.empty_state(len(batch.tokens))
    exchanged = max(batch.question - (ahead or 0), min(decoder.memory.config.ring, batch.question))
    _read(decoder, batch.tokens[:, :exchanged], state)
    if ahead is not None:
        _shuffle(decoder, state)
    _read(decoder, batch.tokens[:, exchanged : batch.question], state)
    right = 0
    rest = slice(batch.question, None)
    for tokens, targets in zip(
        batch.tokens[:, rest].split(_CHUNK, dim=1), batch.targets[:, rest].split(_CHUNK, dim=1), strict=True
    ):
        logits, _ = decoder(tokens, state, logits="all")
        right += int((logits.argmax(dim=-1) == targets).sum())
    return right


def _read(decoder: Decoder, tokens: Tensor, state: MemoryState) -> None:
    if tokens.shape[1]:
        for part in tokens.split(_CHUNK, dim=1):
            decoder(part, state)


def _shuffle(decoder: Decoder, state: MemoryState) -> None:
    """Give each session the memory of the one before it."""
    for name in decoder.memory.spec():
        state.write(name, state.read(name).roll(1, dims=0))
