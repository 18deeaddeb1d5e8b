"""The example of CONTRIBUTING.md is a memory that works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.memory.base import Mechanism
from models.transformer import Decoder, Weights
from models.weights.checkpoint import load_checkpoint
from tests.models.memories import Row
from tests.models.references.window import Reference
from tests.models.sessions import random_tokens, read

CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """What the code blocks of CONTRIBUTING.md define."""
    defined: dict[str, Any] = {"Reference": Reference}
    for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(CONTRIBUTING), "exec"), defined)
    return defined


@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_the_example_equals_its_reference_however_the_text_is_cut(
    tiny_model: Path, example: dict[str, Any], layers: tuple[int, ...]
) -> None:
    checkpoint = load_checkpoint(str(tiny_model))
    mechanism: Mechanism = example["MECHANISM"]
    config = mechanism.config(32, 16, layers=layers)  # type: ignore[call-arg]
    tensors = {name: tensor.double() for name, tensor in checkpoint.tensors.items()}
    memory = mechanism.build(checkpoint.config, config, torch.float64)
    decoder = Decoder(Weights(checkpoint.config, tensors), memory)
    tokens = random_tokens(decoder, 120)
    with torch.no_grad():
        row = Row(config, example["MeanReference"])
        reference = row.reference(checkpoint.config, tensors, config, dict(memory.named_parameters()))
        assert (read(decoder, tokens)[0] - reference.read(tokens)).abs().max() < 1e-8
        whole = read(decoder, tokens)[0]
        assert (read(decoder, tokens, (7, 50, 1))[0] - whole).abs().max() < 1e-8
