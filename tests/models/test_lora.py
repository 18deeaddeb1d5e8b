"""Low-rank adaptation: nothing before training, the same merged or beside, over weights that are shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.adapter import apply_adapter, save_adapter
from models.config import MemoryConfig
from models.errors import ConfigError
from models.lora import AttentionLora
from models.transformer import Decoder
from models.unrolled import UnrolledState
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import build, random_tokens, read

LAYERS = (1, 3)
CONFIG = MemoryConfig(window=32, segment=16)


def adapted(base: Decoder, *, learned: bool) -> Decoder:
    """Over the weights of `base`, with adaptations of two layers beside them."""
    generator = torch.Generator().manual_seed(5)
    loras = {index: AttentionLora(base.config, 3, generator) for index in LAYERS}
    if learned:
        for lora in loras.values():
            for parameter in lora.parameters():
                parameter.data.normal_(std=0.2, generator=generator)
    layers = {index: base.weights.layer(index).adapted(lora) for index, lora in loras.items()}
    return Decoder(base.weights.with_layers(layers), base.memory)


def test_an_untrained_one_changes_nothing(checkpoint: Checkpoint) -> None:
    base = build(checkpoint, CONFIG)
    tokens = random_tokens(base, 60)
    assert torch.equal(read(base, tokens)[0], read(adapted(base, learned=False), tokens)[0])


def test_it_is_the_same_beside_the_weights_and_merged_into_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = build(checkpoint, CONFIG)
    trained = adapted(base, learned=True)
    save_adapter(tmp_path / "a.safetensors", trained, "window", checkpoint.fingerprint)
    merged = apply_adapter(tmp_path / "a.safetensors", base)
    tokens = random_tokens(base, 60)
    before, beside, within = (read(decoder, tokens)[0] for decoder in (base, trained, merged))
    assert (beside - before).abs().max() > 0.1
    assert (beside - within).abs().max() < 1e-4 * beside.abs().max()


def test_each_product_is_that_of_the_formula(checkpoint: Checkpoint) -> None:
    base = build(checkpoint, CONFIG)
    lora = adapted(base, learned=True).weights.loras()[1]
    x = torch.randn(2, 5, base.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = [
            x @ lora.get_parameter(f"{name}_down").T @ lora.get_parameter(f"{name}_up").T
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        torch.testing.assert_close(lora.qkv(x), torch.cat(wanted, dim=-1))


def test_what_is_not_adapted_is_shared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = build(checkpoint, CONFIG)
    save_adapter(tmp_path / "a.safetensors", adapted(base, learned=True), "window", checkpoint.fingerprint)
    merged = apply_adapter(tmp_path / "a.safetensors", base).weights
    assert merged.embedding is base.weights.embedding
    for index in range(base.config.num_layers):
        assert (merged.layer(index) is base.weights.layer(index)) == (index not in LAYERS)
        assert merged.layer(index).down is base.weights.layer(index).down
    assert base.weights.layer(1).lora is None


def test_gradients_reach_it_and_not_the_weights(checkpoint: Checkpoint) -> None:
    decoder = adapted(build(checkpoint, CONFIG), learned=True)
    state = UnrolledState.start(decoder.spec(), 1)
    logits, _ = decoder(torch.tensor([random_tokens(decoder, 20)]), state, logits="all")
    logits.square().sum().backward()
    for index, lora in decoder.weights.loras().items():
        for name, parameter in lora.named_parameters():
            assert parameter.grad is not None, (index, name)
            assert parameter.grad.abs().max() > 0, (index, name)
    assert decoder.weights.layer(1).qkv.grad is None


def test_one_of_another_shape_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = build(checkpoint, CONFIG)
    decoder = adapted(base, learned=True)
    lora = decoder.weights.loras()[1]
    lora.q_proj_up = torch.nn.Parameter(torch.zeros(7, 3))
    save_adapter(tmp_path / "a.safetensors", decoder, "window", checkpoint.fingerprint)
    with pytest.raises(ConfigError, match="does not fit"):
        apply_adapter(tmp_path / "a.safetensors", base)
