"""An adapter: what a memory and a model have learned about each other, as a small safetensors file.

`memory.*` are the mechanism's parameters, `layers.N.*` low-rank changes of the attention of layer N. The metadata name the
format, the mechanism, its settings and the model it was trained on, so that it cannot be loaded over another one by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ConfigError
from models.lora import AttentionLora
from models.memory import MECHANISMS
from models.memory.base import find_mechanism
from models.transformer import Decoder

FORMAT = "palimpsest-adapter-1"
_LOCAL = {"window", "segment", "sinks", "slots", "slot_dtype", "ridge", "reach", "ends"}
"""Settings that an adapter does not prescribe: they may be chosen anew when it is served."""
CAPACITY = {"entries", "top_k", "sharpen_beyond"}
"""Settings that are as the adapter was taught unless something else is asked for: nothing learned depends on them."""


def save_adapter(
    path: Path, decoder: Decoder, mechanism: str, model: str, made: Mapping[str, Any] | None = None
) -> None:
    """Write what was learned; `model` is the fingerprint of the weights it was learned with, `made` says how."""
    learned = {f"memory.{name}": tensor for name, tensor in decoder.memory.state_dict().items()}
    for index, lora in decoder.weights.loras().items():
        learned |= {f"layers.{index}.{name}": tensor for name, tensor in lora.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
    settings = json.dumps(asdict(decoder.memory.config))
    metadata = {"format": FORMAT, "mechanism": mechanism, "model": model, "config": settings}
    metadata["made"] = json.dumps(made or {})
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
        by_segment = find_mechanism(mechanism, MECHANISMS).config.by_segment
        chosen_anew = _LOCAL - {"segment"} if by_segment else _LOCAL
        return {name: _plain(value) for name, value in settings.items() if name not in chosen_anew}
    except (KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"the settings in the adapter {path} cannot be read") from error


def stages_of(path: Path) -> list[dict[str, Any]]:
    """How the adapter was made, one stage after the other, as far as it says so."""
    with safe_open(path, framework="pt") as file:
        made: dict[str, Any] = json.loads((file.metadata() or {}).get("made", "{}"))
    stages: list[dict[str, Any]] = made.get("stages", [made] if made else [])
    return stages


def packaged_adapter(mechanism: str, model: str, options: Mapping[str, Any]) -> Path | None:
    """The adapter in the package for a mechanism and a model, by its fingerprint; None if there is none.

    None, too, where the options want the memory otherwise than it was taught.
    """
    path = Path(str(resources.files("models"))) / "adapters" / f"{mechanism}-{model[:12]}.safetensors"
    if not path.exists():
        return None
    taught = adapter_options(path, mechanism, model)
    wanted = {name: value for name, value in options.items() if name not in _LOCAL | CAPACITY}
    return path if all(taught.get(name) == _plain(value) for name, value in wanted.items()) else None


def resume_adapter(path: Path, decoder: Decoder) -> None:
    """Let what is being learned begin where an adapter left it. Raises `ConfigError` when the file does not fit."""
    with _fitting(path, decoder):
        parts = _parts(load_file(path))
        decoder.memory.load_state_dict(parts.pop("memory", {}), strict=True)
        loras = decoder.weights.loras()
        if loras.keys() != {int(name) for name in parts}:
            raise ValueError(f"it changes the layers {sorted(map(int, parts))} and not {sorted(loras)}")
        for name, tensors in parts.items():
            loras[int(name)].load_state_dict(tensors, strict=True)


def apply_adapter(path: Path, decoder: Decoder) -> Decoder:
    """A decoder with what was learned, merged into weights of its own where it changes them; the rest is shared.

    Raises `ConfigError` when the file does not fit.
    """
    weights, changed = decoder.weights, {}
    with _fitting(path, decoder):
        parts = _parts(load_file(path))
        decoder.memory.load_state_dict(parts.pop("memory", {}), strict=True)
        for name, tensors in parts.items():
            layer, lora = weights.layer(int(name)), AttentionLora(decoder.config, len(tensors["q_proj_down"]))
            lora.load_state_dict(tensors, strict=True)
            changed[int(name)] = layer.adapted(lora.to(decoder.device)).merged()
    return Decoder(weights.with_layers(changed), decoder.memory)


@contextmanager
def _fitting(path: Path, decoder: Decoder) -> Iterator[None]:
    """Say of whatever goes wrong that the adapter does not fit."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError) as error:
        names = ", ".join(field.name for field in fields(decoder.memory.config))
        raise ConfigError(f"the adapter {path} does not fit the memory's settings ({names}): {error}") from error


def adapter_digest(path: Path) -> str:
    """SHA-256 of the file, in hex: sessions that were computed with one adapter are not continued with another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By "memory" or the number of a layer, and name within it. Raises `ValueError` for a name that is neither."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.removeprefix("layers.").partition(".")
        if owner != "memory" and not name.startswith("layers."):
            raise ValueError(f"nothing is called {name}")
        parts.setdefault(owner, {})[rest] = tensor
    return parts


def _plain(value: Any) -> Any:
    """JSON lists as the tuples that settings hold."""
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value
