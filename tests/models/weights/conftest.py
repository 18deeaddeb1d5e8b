"""The tiny model again, written as llama.cpp would write it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WriteGguf = Callable[..., Path]
CopyFolder = Callable[..., Path]


@pytest.fixture
def copy_folder(tiny_model: Path, tmp_path: Path) -> CopyFolder:
    """Copy the tiny model with changed settings, and tensors changed by a function."""

    def copy(
        settings: Mapping[str, object] | None = None,
        change: Callable[[dict[str, torch.Tensor]], None] | None = None,
    ) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(tiny_model, folder)
        config = json.loads((folder / "config.json").read_text()) | dict(settings or {})
        (folder / "config.json").write_text(json.dumps(config))
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors")
        return folder

    return copy


@pytest.fixture
def write_gguf(tiny_model: Path, tmp_path: Path) -> WriteGguf:
    """Write the tiny model as GGUF: matrices in `kind`, extra metadata, tensors changed by a function."""

    def write(
        kind: Kind = Kind.F32,
        *,
        architecture: str = "llama",
        metadata: Mapping[str, Any] | None = None,
        change: Callable[[dict[str, np.ndarray[Any, Any]]], None] | None = None,
        raw: Mapping[str, tuple[np.ndarray[Any, Any], Kind]] | None = None,
    ) -> Path:
        path = tmp_path / f"tiny.{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        _write_metadata(writer, tiny_model, metadata or {})
        tensors = _llama_cpp_tensors(tiny_model)
        if change is not None:
            change(tensors)
        for name, values in tensors.items():
            stored = kind if values.ndim == 2 else Kind.F32
            data, stored = (raw or {}).get(name, (gguf.quants.quantize(values, stored), stored))
            writer.add_tensor(name, data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _llama_cpp_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(4):
        for ours, theirs in PARTS.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = values.shape[0] // 16
            values = values.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(values.shape)
        tensors[names[name]] = np.ascontiguousarray(values)
    return tensors


def _write_metadata(writer: gguf.GGUFWriter, folder: Path, metadata: Mapping[str, Any]) -> None:
    description = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = description["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    values: dict[str, Any] = {
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.block_count": 4,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if index < 3 else 1 for index in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in description["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
        **metadata,
    }
    for key, value in values.items():
        _add(writer, key, value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
