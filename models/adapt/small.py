"""Small models to be trained from nothing: a Llama of a few layers, the same at every start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.errors import ConfigError
from models.memory import MECHANISMS
from models.memory.base import find_mechanism
from models.transformer import Decoder, Weights
from models.weights.layout import expected_shapes


@dataclass(frozen=True)
class SmallModel:
    """The shape of a small model. `theta` is the rotary base, `seed` what its weights are drawn from."""

    layers: int = 2
    hidden: int = 64
    heads: int = 2
    kv_heads: int = 2
    inner: int = 128
    theta: float = 10_000.0
    seed: int = 0

    def config(self, vocab_size: int) -> ModelConfig:
        """As a model's configuration. Raises `ConfigError` for heads that do not fit."""
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            rms_norm_eps=1e-5,
            rope_theta=self.theta,
            trained_context=0,
            tie_word_embeddings=False,
        )


_EMBEDDING = 0.3
"""Standard deviation of embeddings: small enough for what the first layers find to count beside them."""


def build_small(
    model: SmallModel, vocab_size: int, memory: str = "window", options: Mapping[str, Any] | None = None
) -> Decoder:
    """A decoder of random float32 weights over the named memory; all of it asks for gradients.

    Raises `ConfigError` for a memory that there is not, or for options that it does not take.
    """
    config, chosen = model.config(vocab_size), dict(options or {})
    mechanism = find_mechanism(memory, MECHANISMS)
    known = {field.name for field in fields(mechanism.config)}
    if unknown := sorted(set(chosen) - known):
        raise ConfigError(
            f"the memory {memory!r} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    weights = Weights(config, _random_tensors(config, model.seed)).requires_grad_(True)
    return Decoder(weights, mechanism.build(config, mechanism.config(**chosen), torch.float32))


def _random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Norms of one; matrices of variance 1/inputs, those that write to the residual stream smaller by their number."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape)
            continue
        scale = _EMBEDDING if "embed" in name else shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= math.sqrt(2 * config.num_layers)
        tensors[name] = torch.randn(shape, generator=generator) * scale
    return tensors
