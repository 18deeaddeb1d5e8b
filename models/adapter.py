"""An adapter: what a memory has learned for one model, as a small safetensors file.

Its metadata name the format, the mechanism, its settings and the model it was trained on, so that it cannot be loaded over
another one by mistake.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from models.errors import ConfigError
from models.memory.base import Memory

FORMAT = "palimpsest-adapter-1"
_LOCAL = {"window", "segment", "sinks"}
"""Settings that an adapter does not prescribe: they may be chosen anew when it is served."""


def save_adapter(path: Path, memory: Memory, mechanism: str, model: str) -> None:
    """Write the memory's parameters; `model` is the fingerprint of the weights they were trained with."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.state_dict().items()}
    metadata = {"format": FORMAT, "mechanism": mechanism, "model": model, "config": json.dumps(asdict(memory.config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def adapter_options(path: Path, mechanism: str, model: str) -> dict[str, Any]:
    """The mechanism's settings that the adapter was trained with.

    Raises `ConfigError` when the file is no adapter, or one of another mechanism or model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the adapter {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{path} is no adapter of the format {FORMAT}")
    for name, wanted in (("mechanism", mechanism), ("model", model)):
        if metadata.get(name) != wanted:
            raise ConfigError(f"the adapter {path} is for the {name} {metadata.get(name)} and not for {wanted}")
    try:
        settings = json.loads(metadata["config"])
        return {name: _plain(value) for name, value in settings.items() if name not in _LOCAL}
    except (KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"the settings in the adapter {path} cannot be read") from error


def load_adapter(path: Path, memory: Memory) -> None:
    """Give the memory the file's parameters. Raises `ConfigError` when they do not fit."""
    try:
        memory.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        names = ", ".join(field.name for field in fields(memory.config))
        raise ConfigError(f"the adapter {path} does not fit the memory's settings ({names}): {error}") from error


def _plain(value: Any) -> Any:
    """JSON lists as the tuples that settings hold."""
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value
