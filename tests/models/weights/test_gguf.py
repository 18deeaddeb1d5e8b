from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind

from models.errors import CheckpointError, ModelsError, TokenizerError
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint

TOLERANCE = {
    Kind.F32: 0.0,
    Kind.F16: 1e-3,
    Kind.BF16: 1e-2,
    Kind.Q8_0: 1e-2,
    Kind.Q4_0: 0.15,
    Kind.Q4_1: 0.15,
}
WriteGguf = Callable[..., Path]
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def original(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_model))


@pytest.mark.parametrize("kind", TOLERANCE, ids=lambda kind: kind.name)
def test_gguf_holds_the_same_model_as_its_folder(kind: Kind, original: Checkpoint, write_gguf: WriteGguf) -> None:
    loaded = load_checkpoint(str(write_gguf(kind)))
    assert loaded.config == original.config
    assert loaded.tensors.keys() == original.tensors.keys()
    for name, tensor in loaded.tensors.items():
        expected = original.tensors[name]
        assert float((tensor - expected).norm() / expected.norm()) <= TOLERANCE[kind], name


def test_every_quantisation_gives_what_the_package_gives(write_gguf: WriteGguf) -> None:
    """Rows are regrouped for speed; no value may change. Q4_K and Q6_K can be read but not written."""
    name, rows = "blk.0.ffn_down.weight", np.random.default_rng(3)
    for kind in (Kind.Q4_K, Kind.Q6_K):
        size = gguf.constants.GGML_QUANT_SIZES[kind][1]
        stored = rows.integers(0, 60, (64, 2 * size), dtype=np.uint8)  # small bytes: finite float16 scales

        def widen(tensors: Arrays) -> None:
            for layer in range(4):
                tensors[f"blk.{layer}.ffn_down.weight"] = np.zeros((64, 512), np.float32)
                for part in ("gate", "up"):
                    tensors[f"blk.{layer}.ffn_{part}.weight"] = np.zeros((512, 64), np.float32)

        path = write_gguf(metadata={"llama.feed_forward_length": 512}, change=widen, raw={name: (stored, kind)})
        loaded = load_checkpoint(str(path)).tensors["model.layers.0.mlp.down_proj.weight"]
        expected = gguf.quants.dequantize(stored, kind)
        assert expected.std() > 0
        np.testing.assert_array_equal(loaded.numpy(), expected)


def test_a_tensor_longer_than_one_group_of_rows(write_gguf: WriteGguf) -> None:
    """500 x 64 values are 1,000 Q8_0 blocks: one full row of 512 and a rest."""
    values = np.random.default_rng(5).normal(size=(500, 64)).astype(np.float32)
    stored = gguf.quants.quantize(values, Kind.Q8_0)
    path = write_gguf(raw={"token_embd.weight": (stored, Kind.Q8_0)})
    loaded = load_checkpoint(str(path)).tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(loaded.numpy(), gguf.quants.dequantize(stored, Kind.Q8_0))


def test_dtype_and_fingerprint(original: Checkpoint, write_gguf: WriteGguf) -> None:
    path = write_gguf(Kind.F32)
    half, full = load_checkpoint(str(path), dtype=torch.bfloat16), load_checkpoint(str(path))
    assert {tensor.dtype for tensor in half.tensors.values()} == {torch.bfloat16}
    assert half.fingerprint == full.fingerprint != original.fingerprint
    assert len(full.fingerprint) == 32
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert load_checkpoint(str(path)).fingerprint != full.fingerprint


def test_output_matrix_of_its_own(write_gguf: WriteGguf) -> None:
    head = np.full((500, 64), 0.5, np.float32)
    loaded = load_checkpoint(str(write_gguf(change=lambda tensors: tensors.update({"output.weight": head}))))
    assert not loaded.config.tie_word_embeddings
    np.testing.assert_array_equal(loaded.tensors["lm_head.weight"].numpy(), head)


def test_rope_factors_are_kept(write_gguf: WriteGguf) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = write_gguf(change=lambda tensors: tensors.update({"rope_freqs.weight": factors}))
    loaded = load_checkpoint(str(path))
    assert loaded.rope_factors is not None
    assert loaded.rope_factors.tolist() == factors.tolist()
    assert "rope_freqs.weight" not in loaded.tensors


def test_rope_factors_of_another_head_size_are_refused(write_gguf: WriteGguf) -> None:
    path = write_gguf(change=lambda tensors: tensors.update({"rope_freqs.weight": np.ones(5, np.float32)}))
    with pytest.raises(CheckpointError, match="8 positive numbers"):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 8}, "head size"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"llama.attention.head_count": [4, 4]}, "head_count"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon"),
        ({"llama.block_count": 5}, r"missing: model\.layers\.4"),
        ({"llama.block_count": 2**31}, "missing: at least"),
        ({"llama.block_count": 3}, r"not known .*: model\.layers\.3"),
        ({"llama.embedding_length": 32, "llama.attention.key_length": 16}, "wrong shape"),
    ],
)
def test_metadata_that_does_not_fit_is_named(metadata: dict[str, Any], complaint: str, write_gguf: WriteGguf) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(str(write_gguf(metadata=metadata)))


def test_another_architecture_is_refused(write_gguf: WriteGguf) -> None:
    with pytest.raises(CheckpointError, match="'gemma2'"):
        load_checkpoint(str(write_gguf(architecture="gemma2")))


def test_unsupported_quantisation_names_the_tensor(write_gguf: WriteGguf) -> None:
    stored = gguf.quants.quantize(np.zeros((64, 64), np.float32), Kind.Q5_0)
    path = write_gguf(raw={"blk.1.attn_q.weight": (stored, Kind.Q5_0)})
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight .* Q5_0"):
        load_checkpoint(str(path))


def test_bias_is_named(write_gguf: WriteGguf) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.bias"):
        load_checkpoint(str(write_gguf(change=lambda tensors: tensors.update(bias))))


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.ggml.pre": "unheard-of"},
        {"tokenizer.ggml.model": "bert"},
        {"tokenizer.ggml.merges": None},
        {"tokenizer.ggml.bos_token_id": 5000},
    ],
)
def test_tokenizer_that_is_not_supported(metadata: dict[str, Any], write_gguf: WriteGguf) -> None:
    with pytest.raises(TokenizerError):
        load_checkpoint(str(write_gguf(metadata=metadata)))


def test_truncated_anywhere_is_an_error(write_gguf: WriteGguf, tmp_path: Path) -> None:
    whole = write_gguf().read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 300, 7), *range(300, len(whole) - 1, len(whole) // 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelsError):
            load_checkpoint(str(path))


def test_garbage_and_lying_sizes_are_errors(write_gguf: WriteGguf, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    whole = write_gguf().read_bytes()
    huge = struct.pack("<Q", 2**63)
    for bad in (
        b"\0" * 4096,
        b"GGUF" + b"\xff" * 4096,
        whole[:8] + huge + whole[16:],
        whole[:16] + huge + whole[24:],
    ):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_checkpoint(str(path))


def test_damaged_header_never_escapes_as_another_error(write_gguf: WriteGguf, tmp_path: Path) -> None:
    whole = bytearray(write_gguf().read_bytes())
    path, choose = tmp_path / "flipped.gguf", np.random.default_rng(1)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[choose.integers(0, 3000)] ^= 1 << choose.integers(0, 8)
        path.write_bytes(flipped)
        try:
            load_checkpoint(str(path))
        except ModelsError:
            continue


def test_tokenizer_equals_that_of_the_folder(original: Checkpoint, write_gguf: WriteGguf) -> None:
    ours = Tokenizer.of(load_checkpoint(str(write_gguf())).tokenizer)
    theirs = Tokenizer.of(original.tokenizer)
    text = "Bake lomi <|im_end|> nura\n 12 déjà 漢字 🙂"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.bos_id, ours.eos_ids, ours.adds_bos) == (theirs.bos_id, theirs.eos_ids, theirs.adds_bos)
    chat = [{"role": "user", "content": "Bake?"}]
    assert ours.render(chat, add_generation_prompt=True) == theirs.render(chat, add_generation_prompt=True)
