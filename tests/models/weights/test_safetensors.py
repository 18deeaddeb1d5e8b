from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.config import RopeScaling
from models.errors import CheckpointError, TokenizerError
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint

CopyFolder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def _shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_tensors_and_config(tiny_model: Path) -> None:
    loaded = load_checkpoint(str(tiny_model))
    stored = load_file(tiny_model / "model.safetensors")
    assert loaded.tensors.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.tensors.items())
    assert (loaded.config.num_layers, loaded.config.num_kv_heads, loaded.config.head_dim) == (4, 2, 16)
    assert loaded.config.rope_scaling is None
    assert loaded.rope_factors is None


def test_shards_are_one_model(tiny_model: Path, copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    _shard(folder)
    whole, parts = load_checkpoint(str(tiny_model)), load_checkpoint(str(folder))
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())


def test_a_missing_shard_is_an_error(copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    _shard(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors"):
        load_checkpoint(str(folder))


def test_an_index_cannot_leave_its_folder(copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        load_checkpoint(str(folder))


def test_other_weights_have_another_fingerprint(tiny_model: Path, copy_folder: CopyFolder) -> None:
    def nudge(tensors: Tensors) -> None:
        tensors["model.norm.weight"][0] += 1e-3

    first = load_checkpoint(str(tiny_model)).fingerprint
    assert load_checkpoint(str(tiny_model)).fingerprint == first
    assert load_checkpoint(str(copy_folder(change=nudge))).fingerprint != first


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
    ids=["old", "new"],
)
def test_llama3_rope_in_both_forms(settings: dict[str, object], copy_folder: CopyFolder) -> None:
    config = load_checkpoint(str(copy_folder(settings))).config
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 128)


def test_untied(copy_folder: CopyFolder) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = torch.ones(500, 64)

    loaded = load_checkpoint(str(copy_folder({"tie_word_embeddings": False}, add_head)))
    assert torch.equal(loaded.tensors["lm_head.weight"], torch.ones(500, 64))


def test_tied_copy_is_dropped_only_if_equal(copy_folder: CopyFolder) -> None:
    def add_copy(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = copy_folder(change=add_copy)
    assert "lm_head.weight" not in load_checkpoint(str(folder)).tensors
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_checkpoint(str(folder))


def test_missing_left_over_and_misshapen_are_all_named(copy_folder: CopyFolder) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["model.layers.2.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
        tensors["model.norm.weight"] = torch.zeros(63)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(copy_folder(change=spoil)))
    message = str(caught.value)
    assert "missing: model.layers.2.mlp.up_proj.weight" in message
    assert "model.layers.0.self_attn.q_proj.bias" in message
    assert "model.norm.weight (63,) instead of (64,)" in message
    assert "inv_freq" not in message


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, "sliding window"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": [1]}, "rotary settings"),
        ({"architectures": {"a": 1}}, "only LlamaForCausalLM"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 2**40}, "missing: at least"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_settings_that_are_not_supported(settings: dict[str, object], complaint: str, copy_folder: CopyFolder) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(str(copy_folder(settings)))


def test_mistral_without_a_window_is_the_same_architecture(copy_folder: CopyFolder) -> None:
    settings = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
    assert load_checkpoint(str(copy_folder(settings))).config.num_layers == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff" * 64, b"{}"])
def test_garbage_weights(content: bytes, copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(str(folder))


def test_truncated_weights(copy_folder: CopyFolder) -> None:
    path = copy_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        load_checkpoint(str(path.parent))


def test_integers_are_no_weights(copy_folder: CopyFolder) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*int8"):
        load_checkpoint(str(copy_folder(change=spoil)))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_broken_json(file: str, copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    (folder / file).write_text("{")
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(str(folder))


def test_no_weights_and_no_tokenizer(copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"\*\.safetensors"):
        load_checkpoint(str(folder))


def test_ends_from_every_file(copy_folder: CopyFolder) -> None:
    folder = copy_folder({"eos_token_id": 7})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert Tokenizer.of(load_checkpoint(str(folder)).tokenizer).eos_ids == {0, 2, 7, 8, 9}


def test_template_file_and_named_templates(copy_folder: CopyFolder) -> None:
    folder = copy_folder()
    named = json.loads((folder / "tokenizer_config.json").read_text())
    named["chat_template"] = [{"name": "tools", "template": "A"}, {"name": "default", "template": "B"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    assert load_checkpoint(str(folder)).tokenizer.chat_template == "B"
    (folder / "chat_template.jinja").write_text("C")
    assert load_checkpoint(str(folder)).tokenizer.chat_template == "C"
