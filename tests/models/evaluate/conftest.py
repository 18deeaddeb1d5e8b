"""A memory of the tiny model that has a large say, over weights that its adapter has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.adapt.adaptation import Adaptation
from models.adapter import save_adapter
from models.evaluate.reading import Reader, memory_reader
from models.load import LoadedModel, Offer, load_offers
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import open_memory

RING = {"window": 64, "segment": 64}
OPTIONS = {**RING, "rule": "linear"}


@pytest.fixture(scope="session")
def adapter(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of infini: open gates, and other attention in every layer."""
    decoder = Adaptation("infini", OPTIONS, rank=2).build(checkpoint)
    open_memory(decoder.memory)
    generator = torch.Generator().manual_seed(5)
    for lora in decoder.weights.loras().values():
        for tensor in lora.parameters():
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.2
    path = tmp_path_factory.mktemp("adapter") / "infini.safetensors"
    save_adapter(path, decoder, "infini", checkpoint.fingerprint)
    return path


@pytest.fixture(scope="session")
def infini(tiny_model: Path, adapter: Path) -> LoadedModel:
    [loaded] = load_offers([Offer(str(tiny_model), "infini", OPTIONS, adapter=adapter)], dtype=torch.float32).values()
    return loaded


@pytest.fixture
def own(infini: LoadedModel) -> Reader:
    return memory_reader("infini", infini)


@pytest.fixture(scope="session")
def options() -> str:
    """Settings of that memory, as a command takes them."""
    return json.dumps(OPTIONS)


@pytest.fixture(scope="session")
def text(tokenizer: Tokenizer) -> list[int]:
    """Tokens that fold many times."""
    return tokenizer.encode("Kelo rati seti. Bavo mizu nura, keba! " * 40)
