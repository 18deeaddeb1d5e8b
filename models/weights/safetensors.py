"""Checkpoints as Hugging Face folders: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from models.config import ModelConfig, RopeScaling
from models.errors import CheckpointError, TokenizerError
from models.tokenizer import TokenizerSource
from models.weights.digest import sha256_of
from models.weights.layout import Contents, require_fit

_DERIVED = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "masked_bias",
    "attn.bias",
)
"""Ends of tensor names that older exporters wrote although they follow from the configuration."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_folder(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> Contents:
    """Everything in a folder, its tensors converted to `dtype`.

    Raises `CheckpointError` for another architecture, missing or left-over tensors, and damaged files.
    """
    settings = _json(folder / "config.json")
    config = _config(settings)
    shards = _shards(folder)
    tensors = {
        name: tensor
        for shard, names in shards.items()
        for name, tensor in _read_shard(shard, names)
        if not name.endswith(_DERIVED)
    }
    _drop_tied_copy(tensors, config)
    require_fit({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    return Contents(
        config=config,
        tensors={name: tensor.to(device, dtype) for name, tensor in tensors.items()},
        tokenizer=_tokenizer_source(folder, settings, config.vocab_size),
        digest=hashlib.sha256("".join(sha256_of(shard) for shard in sorted(shards)).encode()).hexdigest(),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a model folder has config.json and *.safetensors") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    return _json(path) if path.exists() else {}


def _config(settings: Mapping[str, Any]) -> ModelConfig:
    _refuse_other_architectures(settings)
    hidden, heads = _integer(settings, "hidden_size"), _integer(settings, "num_attention_heads")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"the rotary settings in config.json are {rope!r}; a JSON object is needed")
    return ModelConfig(
        vocab_size=_integer(settings, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(settings, "intermediate_size"),
        num_layers=_integer(settings, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_integer(settings, "num_key_value_heads", heads),
        head_dim=_integer(settings, "head_dim", hidden // heads),
        rms_norm_eps=_number(settings, "rms_norm_eps", 1e-6),
        rope_theta=_number({**settings, **rope}, "rope_theta", 10_000.0),
        trained_context=_integer(settings, "max_position_embeddings"),
        tie_word_embeddings=settings.get("tie_word_embeddings") is True,
        rope_scaling=_rope_scaling(rope),
    )


def _refuse_other_architectures(settings: Mapping[str, Any]) -> None:
    named = settings.get("architectures") or [settings.get("model_type")]
    supported = ("LlamaForCausalLM", "MistralForCausalLM", "llama", "mistral")
    if not isinstance(named, list) or not any(name in supported for name in named):
        raise CheckpointError(f"this is a {named!r}; only LlamaForCausalLM and its like are supported")
    refusals = {
        "attention_bias": "its attention has biases",
        "mlp_bias": "its feed-forward layers have biases",
        "sliding_window": "it was trained with a sliding window",
        "quantization_config": "its weights are quantised; use the unquantised folder or a GGUF file",
    }
    for key, why in refusals.items():
        if settings.get(key):
            raise CheckpointError(f"this checkpoint is not supported: {why} ({key} in config.json)")
    if settings.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"the activation {settings['hidden_act']!r} is not supported; Llama models have 'silu'")


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in (None, "default"):
        return None
    if kind != "llama3":
        raise CheckpointError(f"rotary scaling of type {kind!r} is not supported; only 'llama3' is")
    return RopeScaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_context=_integer(rope, "original_max_position_embeddings"),
    )


def _integer(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key} in config.json is {value!r}; a positive whole number is needed")
    return value


def _number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise CheckpointError(f"{key} in config.json is {value!r}; a positive number is needed")
    return float(value)


def _shards(folder: Path) -> dict[Path, frozenset[str] | None]:
    """The files that hold the weights, and which tensors each must have (None: whatever it has)."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        places = _json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{index} has no weight_map; fetch the folder again")
        files = sorted({str(file) for file in places.values()})
        if any(Path(file).name != file for file in files):
            raise CheckpointError(f"{index} names files outside of its folder")
        return {folder / file: frozenset(name for name in places if places[name] == file) for file in files}
    if single.exists():
        return {single: None}
    others = sorted(folder.glob("*.safetensors"))
    if not others:
        raise CheckpointError(f"{folder} holds no *.safetensors; pickled weights (*.bin) are not read: convert them")
    return dict.fromkeys(others)


def _read_shard(path: Path, names: frozenset[str] | None) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as shard:
            missing = (names or frozenset()) - set(shard.keys())
            if missing:
                raise CheckpointError(f"{path} lacks {', '.join(sorted(missing)[:8])}, which the index promises")
            for name in shard.keys():  # noqa: SIM118 - the handle is no mapping
                tensor = shard.get_tensor(name)
                if tensor.dtype not in _FLOATS:
                    raise CheckpointError(f"tensor {name} is stored as {tensor.dtype}; 16 or 32 bit floats are needed")
                yield name, tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; fetch it again") from error


def _drop_tied_copy(tensors: dict[str, torch.Tensor], config: ModelConfig) -> None:
    """Some exporters write the output matrix although it is the embedding; then both must be equal."""
    if not config.tie_word_embeddings or "lm_head.weight" not in tensors:
        return
    head, embedding = tensors.pop("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if embedding is not None and not torch.equal(head, embedding):
        raise CheckpointError(
            "lm_head.weight differs from the embedding although config.json ties them; set tie_word_embeddings to false"
        )


def _tokenizer_source(folder: Path, settings: Mapping[str, Any], vocab_size: int) -> TokenizerSource:
    path = folder / "tokenizer.json"
    try:
        tokenizer_json = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path} is missing; save the tokenizer in its fast form next to the weights") from None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    named = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    adds_bos = named.get("add_bos_token")
    return TokenizerSource(
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(folder, named),
        bos_token=_token(named, "bos_token"),
        eos_token=_token(named, "eos_token"),
        pad_token=_token(named, "pad_token"),
        unk_token=_token(named, "unk_token"),
        eos_ids=(*_ids(settings, "eos_token_id"), *_ids(generation, "eos_token_id")),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        vocab_size=vocab_size,
    )


def _chat_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = named.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _token(named: Mapping[str, Any], key: str) -> str | None:
    value = named.get(key)
    if isinstance(value, dict):  # an AddedToken with its flags
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(settings: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = settings.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(entry for entry in values if isinstance(entry, int))
