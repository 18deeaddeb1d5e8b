"""A checkpoint, a memory and a precision put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from models.adapter import adapter_digest, adapter_options, apply_adapter, packaged_adapter
from models.calibration import read_heads, read_layers
from models.codec import StateKind
from models.config import MemoryConfig, fingerprint
from models.errors import ConfigError
from models.memory import MECHANISMS
from models.memory.base import find_mechanism
from models.quantized import Precision, Quantizer
from models.tokenizer import Tokenizer
from models.transformer import Decoder, Weights
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


@dataclass(frozen=True)
class Offer:
    """A (model, memory) pair to be served: a checkpoint's name, a mechanism's name, fields of its configuration.

    `calibration` is a file of retrieval heads, `adapter` what the memory has learned, if not those in the package.
    """

    model: str
    memory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Path | None = None
    adapter: Path | None = None


def load_offers(
    offers: Sequence[Offer],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    quantize: Precision | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[tuple[str, str], LoadedModel]:
    """Every pair, by (model, memory). A model that several pairs name is read once and its weights are shared.

    `quantize` is what the weights are rounded to (`models.quantized`), if anything; states are the same in kind.

    Raises `CheckpointError`, `TokenizerError` or `ConfigError`.
    """
    loaded: dict[tuple[str, str], LoadedModel] = {}
    quantizer = None if quantize is None else Quantizer(quantize)
    read: dict[str, tuple[Checkpoint, Weights]] = {}
    for offer in offers:
        if offer.model not in read:
            checkpoint = load_checkpoint(offer.model, dtype=dtype, device=device, say=say)
            read[offer.model] = checkpoint, weights_of(checkpoint)
        pair = load_offer(*read[offer.model], offer)
        if quantizer is not None:
            pair = replace(pair, decoder=quantizer.quantize(pair.decoder))
        loaded[offer.model, offer.memory] = pair
    return loaded


def load_offer(checkpoint: Checkpoint, weights: Weights, offer: Offer) -> LoadedModel:
    """A pair over a model that was read before. Raises `ConfigError`."""
    try:
        adapter = offer.adapter
        if adapter is None and offer.calibration is None:  # which heads the package's were taught, its own file says
            adapter = packaged_adapter(offer.memory, checkpoint.fingerprint, offer.options)
        config = memory_config(checkpoint, offer.memory, offer.options, offer.calibration, adapter)
        return assemble(checkpoint, config, offer.memory, adapter, weights)
    except ConfigError as error:
        raise ConfigError(f"{offer.memory} of {offer.model}: {error}") from error


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
    """`load_offers` for a single pair."""
    offer = Offer(name, memory, options or {}, calibration)
    return load_offers([offer], dtype=dtype, device=device, say=say)[name, memory]


def weights_of(checkpoint: Checkpoint) -> Weights:
    """The checkpoint's weights as decoders use them."""
    return Weights(checkpoint.config, checkpoint.tensors, checkpoint.rope_factors)


def assemble(
    checkpoint: Checkpoint,
    config: MemoryConfig,
    memory: str,
    adapter: Path | None = None,
    weights: Weights | None = None,
) -> LoadedModel:
    """A loaded checkpoint with a memory of the given configuration, over `weights` if they were laid out before."""
    dtype = checkpoint.tensors["model.embed_tokens.weight"].dtype
    mechanism = find_mechanism(memory, MECHANISMS)
    built = mechanism.build(checkpoint.config, config, dtype)
    decoder = Decoder(weights or weights_of(checkpoint), built.requires_grad_(False))
    kept = decoder.memory_fingerprint()
    if adapter is not None:
        decoder = apply_adapter(adapter, decoder)
        kept = fingerprint(kept, adapter_digest(adapter))
    return LoadedModel(
        decoder=decoder,
        tokenizer=Tokenizer.of(checkpoint.tokenizer),
        fingerprint=checkpoint.fingerprint,
        kind=StateKind(checkpoint.fingerprint, kept, decoder.spec()),
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
    )


def memory_config(
    checkpoint: Checkpoint,
    memory: str,
    options: Mapping[str, Any],
    calibration: Path | None = None,
    adapter: Path | None = None,
) -> MemoryConfig:
    """The mechanism's configuration for this checkpoint. Raises `ConfigError` for options it does not have."""
    mechanism = find_mechanism(memory, MECHANISMS)
    known = {field.name for field in fields(mechanism.config)}
    if unknown := sorted(set(options) - known):
        raise ConfigError(
            f"the memory {memory!r} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    chosen = {name: _hashable(value) for name, value in options.items()}
    if adapter is not None:
        chosen = adapter_options(adapter, memory, checkpoint.fingerprint) | chosen
    if "heads" in known and "heads" not in chosen:
        chosen["heads"] = read_heads(checkpoint.fingerprint, calibration)
    if "ends" in known and "ends" not in chosen:
        chosen["ends"] = Tokenizer.of(checkpoint.tokenizer).sentence_ends
    if "layers" in known and "layers" not in chosen:
        chosen["layers"] = read_layers(checkpoint.fingerprint, calibration)
    try:
        return mechanism.config(**chosen)
    except TypeError as error:
        raise ConfigError(f"a setting of the memory {memory!r} is of the wrong type: {error}") from error


def _hashable(value: Any) -> Any:
    """Lists, as settings from JSON have them, as tuples."""
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value
