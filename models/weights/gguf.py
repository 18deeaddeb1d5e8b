"""Checkpoints in llama.cpp's GGUF format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.config import ModelConfig
from models.errors import CheckpointError
from models.weights.digest import sha256_of
from models.weights.gguf_file import GgufFile, TensorPlace
from models.weights.gguf_tokenizer import tokenizer_source
from models.weights.layout import Contents, require_fit

_QUANTIZATIONS = frozenset(
    GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
)
_BLOCKS_A_ROW = 512
"""The package dequantises sixteen rows at a time; rows this long keep numpy busy instead of the
interpreter.
"""

_ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf(path: Path, *, dtype: torch.dtype, device: torch.device | str, digest: str | None = None) -> Contents:
    """Everything in a GGUF file, its tensors dequantised to `dtype`. `digest` saves hashing a file just
    verified.

    Raises `CheckpointError` for another architecture, a quantisation that is not supported, missing or
    left-over tensors, and damaged files.
    """
    file = GgufFile.open(path)
    config = _config(file)
    places = {_hugging_face_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
    require_fit({ours: file.tensors[name].shape for ours, name in places.items()}, config)
    _require_readable(file.tensors)
    factors = _rope_factors(file, config)

    def load(item: tuple[str, str]) -> tuple[str, torch.Tensor]:
        ours, name = item
        return ours, _order_heads(ours, _tensor(file, name), config).to(device, dtype)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # numpy lets go of the interpreter
        hashing = threads.submit(sha256_of, path) if digest is None else None
        tensors = dict(threads.map(load, places.items()))
    return Contents(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer_source(file.metadata, config.vocab_size),
        digest=digest if hashing is None else hashing.result(),  # type: ignore[arg-type]
        rope_factors=factors,
    )


def _config(file: GgufFile) -> ModelConfig:
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{file.path} holds a model of architecture {architecture!r}; only 'llama' is supported")
    heads, hidden = (
        _integer(metadata, "llama.attention.head_count"),
        _integer(metadata, "llama.embedding_length"),
    )
    head_dim = _integer(metadata, "llama.attention.key_length", hidden // heads)
    _refuse_other_variants(metadata, head_dim)
    return ModelConfig(
        vocab_size=_integer(metadata, "llama.vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())) or None),
        hidden_size=hidden,
        intermediate_size=_integer(metadata, "llama.feed_forward_length"),
        num_layers=_integer(metadata, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=_integer(metadata, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=_number(metadata, "llama.attention.layer_norm_rms_epsilon", None),
        rope_theta=_number(metadata, "llama.rope.freq_base", 10_000.0),
        trained_context=_integer(metadata, "llama.context_length"),
        tie_word_embeddings="output.weight" not in file.tensors,
    )


def _refuse_other_variants(metadata: Mapping[str, Any], head_dim: int) -> None:
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or metadata.get("llama.rope.scale_linear", 1.0) != 1.0:
        raise CheckpointError(
            f"rotary scaling of type {scaling!r} is not supported; only Llama 3's ({_ROPE_FACTORS}) is"
        )
    turned = metadata.get("llama.rope.dimension_count", head_dim)
    if turned != head_dim or metadata.get("llama.attention.value_length", head_dim) != head_dim:
        raise CheckpointError(
            "keys, values and the rotary embedding must share one head size: "
            f"{head_dim} with {turned} rotary dimensions is not supported"
        )


def _integer(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"the GGUF file's {key} is {value!r}; a positive whole number is needed")
    return value


def _number(metadata: Mapping[str, Any], key: str, default: float | None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, (int, float)) or not value > 0:
        raise CheckpointError(f"the GGUF file's {key} is {value!r}; a positive number is needed")
    # Written as float32: 1e-5 comes back as 9.99999974e-06, which its shortest decimal form undoes.
    return float(str(np.float32(value)))


def _hugging_face_name(name: str) -> str:
    """The Hugging Face name, or the given one when there is none, so that an error can name it."""
    if name in _WHOLE:
        return _WHOLE[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if part in _IN_LAYER:
            return f"model.layers.{index}.{_IN_LAYER[part]}.weight"
    return name


def _require_readable(tensors: Mapping[str, TensorPlace]) -> None:
    for name, place in tensors.items():
        if place.kind not in _QUANTIZATIONS:
            supported = ", ".join(sorted(kind.name for kind in _QUANTIZATIONS))
            raise CheckpointError(f"tensor {name} has the unsupported type {place.kind.name}; use one of {supported}")


def _rope_factors(file: GgufFile, config: ModelConfig) -> torch.Tensor | None:
    if _ROPE_FACTORS not in file.tensors:
        return None
    factors = _tensor(file, _ROPE_FACTORS)
    if factors.shape != (config.head_dim // 2,) or not bool((factors > 0).all()):
        raise CheckpointError(f"{_ROPE_FACTORS} must hold {config.head_dim // 2} positive numbers")
    return factors


def _tensor(file: GgufFile, name: str) -> torch.Tensor:
    """One tensor in float32, its own memory."""
    place, stored = file.tensors[name], file.bytes_of(name)
    if place.kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        kind = np.float32 if place.kind == GGMLQuantizationType.F32 else np.float16
        return torch.from_numpy(stored.view(kind).astype(np.float32).reshape(place.shape))
    width = GGML_QUANT_SIZES[place.kind][1] * _BLOCKS_A_ROW
    whole = stored.size // width * width
    parts = [stored[:whole].reshape(-1, width), stored[whole:].reshape(1, -1)]
    values = [dequantize(part, place.kind).ravel() for part in parts if part.size]
    return torch.from_numpy(np.concatenate(values).reshape(place.shape))


def _order_heads(name: str, weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Undo llama.cpp's interleaving of rotary pairs in q and k: (heads·d/2·2, D) → (heads·2·d/2, D)."""
    if name.endswith("q_proj.weight"):
        heads = config.num_heads
    elif name.endswith("k_proj.weight"):
        heads = config.num_kv_heads
    else:
        return weight
    return weight.view(heads, config.head_dim // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
