"""Every memory there is, small enough for the tiny model, as settings of a server that offers all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from models.adapter import save_adapter
from models.config import MemoryConfig
from models.load import Offer, weights_of
from models.memory import MECHANISMS
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint
from tests.models.memories import ROWS
from tests.models.sessions import open_memory


def small_config(memory: str) -> MemoryConfig:
    """The configuration with which the mechanism itself is tested."""
    wanted = MECHANISMS[memory].config
    found = next((row.config for row in ROWS.values() if type(row.config) is wanted), None)
    assert found is not None, f"{memory} has no row in tests/models/memories.py"
    return found


def every_memory(model: Path, checkpoint: Checkpoint, folder: Path) -> list[Offer]:
    """An offer of each. Those that learn have an adapter in `folder` with which the memory has a large say."""
    offers, weights = [], weights_of(checkpoint)
    for name, mechanism in MECHANISMS.items():
        config = small_config(name)
        memory = mechanism.build(checkpoint.config, config, torch.float32)
        adapter = None
        if memory.state_dict():
            open_memory(memory)
            adapter = folder / f"{name}.safetensors"
            save_adapter(adapter, Decoder(weights, memory), name, checkpoint.fingerprint)
        offers.append(Offer(str(model), name, asdict(config), adapter=adapter))
    return offers


def offer_settings(offers: Sequence[Offer]) -> Mapping[str, object]:
    """Settings of a server with these offers, all of one model; the first is the default."""
    default, *others = offers
    entries = [
        {"memory": offer.memory, "options": offer.options} | ({"adapter": str(offer.adapter)} if offer.adapter else {})
        for offer in others
    ]
    settings = {
        "model": default.model,
        "memory": default.memory,
        "memory_options": json.dumps(default.options),
        "offers": json.dumps(entries),
    }
    return settings | ({"adapter": default.adapter} if default.adapter else {})
