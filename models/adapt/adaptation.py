"""A pretrained model that is about to learn to use a memory: what is frozen, what is learned, and what it is taught."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from models.adapt.tasks.base import Task
from models.adapt.tasks.mixture import Mixture
from models.adapt.tasks.passages import Passages
from models.adapt.tasks.retrieval import copy_task, fact_task, needle_task, passkey_task, rewrite_task
from models.errors import ConfigError
from models.load import assemble, memory_config
from models.lora import AttentionLora
from models.memory.base import LayeredConfig
from models.memory.window import Window
from models.tokenizer import Tokenizer
from models.transformer import Decoder, Weights
from models.weights.checkpoint import Checkpoint

OBJECTIVES = ("passkey", "book-passkey", "needle", "needles", "rewrite", "fact", "copy", "text")


@dataclass(frozen=True)
class Adaptation:
    """Which memory, with which settings, and how many dimensions the changes of the model's own attention have.

    `rank` 0 leaves the attention as it is. It is changed in the layers that have the memory, or in all of them if the
    mechanism does not choose.
    """

    memory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 16
    seed: int = 0

    def build(self, checkpoint: Checkpoint, weights: Weights | None = None) -> Decoder:
        """The decoder, the base frozen, and only what is to be learned asking for gradients. Raises `ConfigError`."""
        if self.rank < 0:
            raise ConfigError(f"the rank must not be negative, but is {self.rank}")
        config = memory_config(checkpoint, self.memory, self.options)
        decoder = assemble(checkpoint, config, self.memory, weights=weights).decoder
        layers: Iterable[int] = range(checkpoint.config.num_layers)
        if isinstance(config, LayeredConfig):
            layers = config.memory_layers(checkpoint.config)
        generator = torch.Generator().manual_seed(self.seed)
        loras = {layer: AttentionLora(checkpoint.config, self.rank, generator) for layer in layers if self.rank}
        frozen = decoder.weights
        adapted = {index: frozen.layer(index).adapted(lora.to(decoder.device)) for index, lora in loras.items()}
        learning = Decoder(frozen.with_layers(adapted), decoder.memory.requires_grad_(True))
        if not any(parameter.requires_grad for parameter in learning.parameters()):
            raise ConfigError(f"{self.memory} has nothing to learn: give a rank above 0 to change the attention")
        return learning


def base_of(decoder: Decoder, weights: Weights) -> Decoder:
    """The model as it was, over the same ring and without a memory: what text is compared with."""
    config = decoder.memory.config
    return Decoder(weights, Window(decoder.config, config, decoder.dtype))


def objective(name: str, tokenizer: Tokenizer, book: Sequence[int], *, imitate: float = 1.0) -> Task:
    """A task by its name, one of `OBJECTIVES`, over an encoded book. Raises `ConfigError` for another name."""
    if name == "passkey":
        return passkey_task(tokenizer)
    if name == "book-passkey":
        return passkey_task(tokenizer, book=book)
    if name == "needle":
        return needle_task(tokenizer, book)
    if name == "needles":
        return needle_task(tokenizer, book, keys=4)
    if name == "rewrite":
        return rewrite_task(tokenizer, book)
    if name == "fact":
        return fact_task(tokenizer, book)
    if name == "copy":
        return copy_task(tokenizer, book)
    if name == "text":
        return Passages(torch.tensor(book), tokenizer.vocab_size, imitate=imitate)
    raise ConfigError(f"no objective is called {name!r}; there are: {', '.join(OBJECTIVES)}")


def objectives(
    weights: Mapping[str, float], tokenizer: Tokenizer, book: Sequence[int], *, imitate: float = 1.0
) -> Task:
    """One task or a mixture of several, each with how often it has its turn. Raises `ConfigError`."""
    tasks = tuple(objective(name, tokenizer, book, imitate=imitate) for name in weights)
    return tasks[0] if len(tasks) == 1 else Mixture(tasks, tuple(weights.values()))
