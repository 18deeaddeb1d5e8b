"""A checkpoint, a memory and a precision put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from models.calibration import read_heads
from models.codec import StateKind
from models.config import MemoryConfig
from models.errors import ConfigError
from models.memory import MECHANISMS
from models.memory.base import find_mechanism
from models.memory.slots import SlotsConfig
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint, load_checkpoint

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """Everything a worker computes with. `kind` is what saved states must match."""

    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str
    kind: StateKind
    parameters: int


def load_model(
    name: str,
    *,
    memory: str = "slots",
    options: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a checkpoint by name and give it a memory.

    `options` override fields of the mechanism's configuration. Retrieval heads of `slots` come from `calibration`, else from
    what the package has for this model. Raises `CheckpointError`, `TokenizerError` or `ConfigError`.
    """
    checkpoint = load_checkpoint(name, dtype=dtype, device=device, say=say)
    return assemble(checkpoint, memory_config(checkpoint, memory, options or {}, calibration), memory)


def assemble(checkpoint: Checkpoint, config: MemoryConfig, memory: str) -> LoadedModel:
    """A loaded checkpoint with a memory of the given configuration."""
    dtype = checkpoint.tensors["model.embed_tokens.weight"].dtype
    mechanism = find_mechanism(memory, MECHANISMS)
    decoder = Decoder(
        checkpoint.config,
        checkpoint.tensors,
        mechanism.build(checkpoint.config, config, dtype),
        rope_factors=checkpoint.rope_factors,
    )
    return LoadedModel(
        decoder=decoder,
        tokenizer=Tokenizer.of(checkpoint.tokenizer),
        fingerprint=checkpoint.fingerprint,
        kind=StateKind(checkpoint.fingerprint, decoder.memory_fingerprint(), decoder.spec()),
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
    )


def memory_config(
    checkpoint: Checkpoint, memory: str, options: Mapping[str, Any], calibration: Path | None = None
) -> MemoryConfig:
    """The mechanism's configuration for this checkpoint. Raises `ConfigError` for options it does not have."""
    mechanism = find_mechanism(memory, MECHANISMS)
    known = {field.name for field in fields(mechanism.config)}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"the memory {memory!r} has no setting {', '.join(unknown)}")
    chosen = dict(options)
    if mechanism.config is SlotsConfig and "heads" not in chosen:
        chosen["heads"] = read_heads(checkpoint.fingerprint, calibration)
    return mechanism.config(**chosen)
