"""A mean of adapters: looks that were taught one after the other each know something that the others have lost.

`palimpsest-server mix slots-second.safetensors=0.25 slots-third.safetensors=0.75 --recent 1 --out slots.safetensors`. A look is
made of linear forms, so that a mean of looks is one, too; of those that began with the same one it finds what either finds.
`--recent` lets far scores rise by so many nats from a head's oldest slot to its newest, and leaves those in the middle as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.adapter import CAPACITY, adapter_options, stages_of
from models.errors import ConfigError, ModelsError

_SLOPED = ("memory.look.offset", "memory.look.steepness")


def mix(paths: Sequence[Path], weights: Sequence[float], recent: float, out: Path, command: str) -> None:
    """Write the weighed mean of adapters of one kind; the weights sum up to 1. Raises `ConfigError` for others.

    How much they have room for is that of the first.
    """
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ConfigError(f"weights must sum up to 1, not {sum(weights):g}")
    read = [_read(path) for path in paths]
    tensors, metadata = read[0]
    for path, (others, described) in zip(paths, read, strict=True):
        shapes = {name: tensor.shape for name, tensor in others.items()}
        alike = shapes == {name: tensor.shape for name, tensor in tensors.items()}
        if not alike or _kind(path, described) != _kind(paths[0], metadata):
            raise ConfigError(f"{path} is not of the same kind as {paths[0]}")
    mixed = {
        name: sum(
            (weight * others[name].double() for weight, (others, _) in zip(weights, read, strict=True)), 0 * tensor
        )
        .to(tensor.dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }
    if recent:
        if not all(name in mixed for name in _SLOPED):
            raise ConfigError("only looks of slots can prefer what is recent")
        offset, steepness = _SLOPED
        mixed[offset] += recent / 2
        mixed[steepness] += recent
    stages = [stage for path in paths for stage in stages_of(path)]
    once = [stage for index, stage in enumerate(stages) if stage not in stages[:index]]
    made = {"stages": [*once, {"command": command, "torch": torch.__version__.split("+")[0]}]}
    save_file(mixed, out, metadata={**metadata, "made": json.dumps(made)})


def _kind(path: Path, metadata: Mapping[str, str]) -> tuple[str, str, dict[str, Any]]:
    """What adapters have in common of which a mean can be made: all but what may be chosen anew when they are served."""
    mechanism, model = metadata.get("mechanism", ""), metadata.get("model", "")
    settings = adapter_options(path, mechanism, model)
    return mechanism, model, {name: value for name, value in settings.items() if name not in CAPACITY}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return load_file(path), dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the adapter {path}: {error}") from error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="palimpsest-server mix", description="The weighed mean of adapters.")
    parser.add_argument("adapters", nargs="+", metavar="FILE=WEIGHT", help="adapters of one kind; weights sum up to 1")
    parser.add_argument("--recent", type=float, default=0.0, help="nats by which the newest slot is preferred")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    try:
        paths, weights = [], []
        for given in options.adapters:
            path, _, weight = given.rpartition("=")
            try:
                weights.append(float(weight))
            except ValueError:
                raise ConfigError(f"write an adapter as FILE=WEIGHT, not {given!r}") from None
            paths.append(Path(path))
        command = shlex.join(("palimpsest-server", "mix", *sys.argv[1:]))
        mix(paths, weights, options.recent, options.out, command)
    except (ModelsError, OSError) as error:
        sys.exit(f"mix: {error}")


if __name__ == "__main__":
    main()
