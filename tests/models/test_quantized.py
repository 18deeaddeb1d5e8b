"""Weights in eight and in four bits: what the kernels make of them beside the same weights, rounded, in torch's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models import native
from models.memory import MECHANISMS
from models.quantized import Precision, Quantizer, quantize_blocks, quantize_rows
from models.transformer import Decoder, Weights
from tests.models.memories import ROWS, Row, each
from tests.models.native import test_dense
from tests.models.native.test_attention import capable
from tests.models.sessions import open_memory, random_tokens, read

CONFIG = replace(test_dense.CONFIG, vocab_size=320, hidden_size=128, intermediate_size=192, num_layers=4, num_heads=4)
LENGTH = 130  # a ring of 48 tokens, segments of 16: six folds, and two tokens more


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def matrix(outputs: int, inputs: int) -> Tensor:
        drawn = torch.randn(outputs, inputs, generator=generator)
        return drawn.mul(inputs**-0.5).bfloat16()

    found = {"model.embed_tokens.weight": matrix(320, 128), "model.norm.weight": torch.ones(128).bfloat16()}
    for layer in range(4):
        shapes = {"q_proj": (128, 128), "k_proj": (64, 128), "v_proj": (64, 128), "o_proj": (128, 128)}
        found |= {f"model.layers.{layer}.self_attn.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        shapes = {"gate_proj": (192, 128), "up_proj": (192, 128), "down_proj": (128, 192)}
        found |= {f"model.layers.{layer}.mlp.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = torch.rand(128, generator=generator).add(0.5).bfloat16()
    return found


def decoder(row: Row) -> Decoder:
    name = next(name for name, mechanism in MECHANISMS.items() if mechanism.config is type(row.config))
    memory = MECHANISMS[name].build(CONFIG, row.config, torch.bfloat16)
    open_memory(memory)
    return Decoder(Weights(CONFIG, tensors()), memory.requires_grad_(False))


def rounded(row: Row, monkeypatch: pytest.MonkeyPatch, precision: Precision = "int8") -> Decoder:
    """The same weights, computed with in bfloat16."""
    with monkeypatch.context() as without:
        without.setattr(native, "suits_layer", lambda *_: False)
        without.setattr(native, "suits_matrix", lambda *_: False)
        return Quantizer(precision).quantize(decoder(row))


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    assert (found - expected).norm() < share * expected.norm()


def test_a_row_is_rounded_to_its_own_steps() -> None:
    matrix = torch.tensor([[127.0, -3.2, 0.4], [-0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    codes, scale = quantize_rows(matrix)
    assert codes.tolist() == [[127, -3, 0], [-127, 64, 0], [0, 0, 0]]
    assert torch.allclose(scale[:2], torch.tensor([1.0, 0.5 / 127]))


def test_a_block_is_rounded_to_sixteen_steps_of_its_own() -> None:
    matrix = torch.cat((torch.arange(32) / 8 - 1, torch.full((32,), 0.5), torch.tensor([3.0, 18.0]))).view(1, -1)
    codes, scale, lowest = quantize_blocks(matrix)
    assert codes.shape == (1, 66)
    assert lowest.tolist() == [[-1, 0.5, 0]]  # what a row is short of a block counts as zeros
    assert codes[0, :32].tolist() == [round(15 * n / 31) for n in range(32)]
    assert not codes[0, 32:64].any()
    assert codes[0, 64:].tolist() == [2, 15]
    assert scale[0, 1] == 0


def test_what_came_in_such_blocks_comes_back() -> None:
    generator = torch.Generator().manual_seed(9)
    codes = torch.randint(16, (6, 64), generator=generator)
    codes[:, ::32], codes[:, 1::32] = 0, 15  # as whoever rounds to the span of a block has them
    scale, lowest = (torch.rand(6, 2, generator=generator).sub(share).mul(0.1).half() for share in (0, 0.9))
    matrix = codes * scale.float().repeat_interleave(32, 1) + lowest.float().repeat_interleave(32, 1)
    found = quantize_blocks(matrix.bfloat16())
    assert torch.equal(found[0], codes.to(torch.uint8))
    torch.testing.assert_close(found[1], scale, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(found[2], lowest, rtol=0.01, atol=1e-4)


@capable
@each({name: ROWS[name] for name in ("window", "slots that foretell", "infini delta")})
@torch.inference_mode()
def test_four_bits_give_what_such_weights_give(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = Quantizer("int4").quantize(decoder(row))
    tokens = random_tokens(quantized, 64)
    expected, _ = read(rounded(row, monkeypatch, "int4"), tokens)
    eight, _ = read(Quantizer().quantize(decoder(row)), tokens)
    for cuts in ((), (1,), (16, 3)):
        found, _ = read(quantized, tokens, cuts)
        assert_near(found[:40], expected[:40], 0.03)
        assert (found - expected).norm() < (eight - expected).norm() / 3


@capable
@each(ROWS)
@torch.inference_mode()
def test_kernels_give_what_the_rounded_weights_give(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = Quantizer().quantize(decoder(row))
    assert all(quantized.weights.layer(index).dense is not None for index in range(4))
    tokens = random_tokens(quantized, LENGTH)
    expected, _ = read(rounded(row, monkeypatch), tokens)
    alike = LENGTH if row.differentiable else 64  # slots are full then, and choose between near equals
    for cuts in ((), (1,), (16, 3), (7, 50, 1)):
        found, _ = read(quantized, tokens, cuts)
        assert_near(found[:alike], expected[:alike], 0.12)
        assert_near(found[:40], expected[:40], 0.03)  # before the first fold


@capable
@torch.inference_mode()
def test_a_memory_hears_single_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["slots that foretell"]
    quantized = Quantizer().quantize(decoder(row))
    tokens = random_tokens(quantized, 45)
    _, expected = read(rounded(row, monkeypatch), tokens)
    _, found = read(quantized, tokens, (1,))
    assert_near(found.read("importance"), expected.read("importance"), 0.05)


@capable
@each(ROWS)
@torch.inference_mode()
def test_sessions_that_lie_apart_go_through_together(row: Row) -> None:
    quantized = Quantizer().quantize(decoder(row))
    texts = [random_tokens(quantized, length, seed=length) for length in (66, 20)]
    slab = quantized.empty_state(4)
    logits = []
    for session, text in zip((3, 1), texts, strict=True):
        quantized(torch.tensor([text]), slab.select([session]))
    following = torch.tensor([[5], [9]])
    for _ in range(20):
        logits.append(quantized(following, slab.select([3, 1]))[0])
    for place, text in enumerate(texts):
        _, alone = read(quantized, text)
        for step in range(20):
            expected, alone = quantized(following[place : place + 1], alone)
            assert_near(logits[step][place], expected[0], 0.05)


def test_layers_that_decoders_share_are_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = decoder(ROWS["window"])
    quantizer = Quantizer()
    one, two = quantizer.quantize(first), quantizer.quantize(Decoder(first.weights, first.memory))
    assert one.weights.layer(2) is two.weights.layer(2)
    assert one.weights.head is two.weights.head
    assert one.weights.embedding is first.weights.embedding


def test_other_precisions_are_rounded_and_computed_with_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = decoder(ROWS["window"]).weights.layer(0)
    [codes, scale] = quantize_rows(plain.down)
    found = rounded(ROWS["window"], monkeypatch).weights.layer(0)
    assert found.dense is None
    assert torch.equal(found.down, (codes * scale[:, None]).bfloat16())
    assert not torch.equal(found.down, plain.down)
