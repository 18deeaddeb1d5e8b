"""The default model beside transformers, built from the very same float32 tensors."""

from __future__ import annotations

import pytest
import torch

from bench.transformers_model import of_transformers
from models.load import assemble, memory_config
from models.weights.checkpoint import load_checkpoint
from models.weights.hub import DEFAULT_MODEL

pytestmark = pytest.mark.model


def test_logits_of_512_tokens_are_those_of_transformers() -> None:
    checkpoint = load_checkpoint(DEFAULT_MODEL, dtype=torch.float32)
    theirs = of_transformers(checkpoint)
    loaded = assemble(checkpoint, memory_config(checkpoint, "slots", {}), "slots")
    text = "The ferry left at noon; 17 crates of pears, 🙂 and a clock stood on deck. " * 40
    tokens = torch.tensor([loaded.tokenizer.encode(text)[:512]])
    assert tokens.shape == (1, 512)
    with torch.no_grad():
        expected = theirs(tokens).logits
    state = loaded.decoder.empty_state()
    parts = [loaded.decoder(part, state, logits="all")[0] for part in tokens.split(200, dim=1)]
    assert (torch.cat(parts, dim=1) - expected).abs().max() < 1e-3
