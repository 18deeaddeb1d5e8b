"""A training as a file: what was learned so far, and all that the next step depends on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.errors import CheckpointError
from models.transformer import Decoder


def write_checkpoint(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]) -> None:
    """Save what is trained of the decoder, the optimizer and `run`, plain values and tensors. Replaces the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = {name: weight.detach() for name, weight in decoder.named_parameters() if weight.requires_grad}
    written = path.with_name(path.name + ".part")
    torch.save({"run": dict(run), "trained": trained, "optimizer": optimizer.state_dict()}, written)
    written.replace(path)


def read_checkpoint(
    path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, expected: Mapping[str, str]
) -> dict[str, Any]:
    """Bring decoder and optimizer to where the checkpoint left them; gives back its `run`.

    Raises `CheckpointError` when it cannot be read, does not fit, or differs from `expected` in what that names.
    """
    try:
        saved = torch.load(path, map_location=decoder.device, weights_only=True)
        run: dict[str, Any] = saved["run"]
        trained, progress = saved["trained"], saved["optimizer"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot go on from {path}: delete it to begin anew ({error})") from error
    for name, wanted in expected.items():
        if run.get(name) != wanted:
            raise CheckpointError(
                f"{path} is of another training, with the {name} {run.get(name)} instead of {wanted};"
                f" delete it or choose another file"
            )
    weights = {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != {name: tensor.shape for name, tensor in trained.items()}:
        raise CheckpointError(f"{path} is of a model with other weights; delete it or choose another file")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(trained[name])
    optimizer.load_state_dict(progress)
    return run
