"""The dense half of a layer in eight and four bits beside the same rounding in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import native
from models.config import ModelConfig
from models.layers import Rotary, rotate
from models.quantized import Precision, quantize_blocks, quantize_rows, rounded
from tests.models.native.test_attention import capable

CONFIG = ModelConfig(
    vocab_size=160,
    hidden_size=192,
    intermediate_size=320,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    trained_context=2048,
    tie_word_embeddings=True,
)
SHAPES = [(1, 1), (3, 1), (2, 3), (1, 31), (1, 32), (2, 50), (1, 131)]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


MATRICES = {
    name: drawn(outputs, inputs, seed=seed, size=inputs**-0.5)
    for seed, (name, outputs, inputs) in enumerate(
        [("qkv", 320, 192), ("out", 192, 192), ("gate_up", 640, 192), ("down", 192, 320), ("head", 160, 192)]
    )
}
NORMS = {"attention": drawn(192, seed=10).abs(), "mlp": drawn(192, seed=11).abs()}


def packed(matrix: Tensor, precision: Precision) -> native.Packed:
    return native.pack(*quantize_rows(matrix)) if precision == "int8" else native.pack_nibbles(*quantize_blocks(matrix))


def layer(precision: Precision = "int8") -> native.DenseLayer:
    order = native.in_pairs(len(MATRICES["gate_up"]))
    return native.DenseLayer(
        config=CONFIG,
        attention_norm=NORMS["attention"],
        mlp_norm=NORMS["mlp"],
        gate_up=packed(MATRICES["gate_up"][order], precision),
        **{name: packed(MATRICES[name], precision) for name in ("qkv", "out", "down")},
    )


def product(x: Tensor, name: str, precision: Precision = "int8") -> Tensor:
    """x, rounded to eight bits, times a matrix, rounded."""
    groups = x.unflatten(-1, (-1, native.GROUP))
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
    return F.linear(((groups / scale).round() * scale).flatten(-2), rounded(MATRICES[name], precision))


def normed(x: Tensor, name: str) -> Tensor:
    return F.rms_norm(x, (192,), NORMS[name], CONFIG.rms_norm_eps)


def assert_near(found: Tensor, expected: Tensor, bits: int = 8) -> None:
    """Single numbers that lie between two steps may be rounded the other way."""
    assert (found.float() - expected).norm() < 2**-bits * expected.norm()


@capable
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_queries_keys_and_values_are_projected_and_turned(batch: int, length: int, precision: Precision) -> None:
    x = drawn(batch, length, 192, seed=20, size=3)
    cos, sin = Rotary(CONFIG, "cpu").table(torch.arange(batch * length).view(batch, length) * 7)
    heads = product(normed(x, "attention"), "qkv", precision).unflatten(-1, (10, 32)).transpose(1, 2)
    expected = heads[:, :6], rotate(heads[:, :6], cos, sin), rotate(heads[:, 6:8], cos, sin), heads[:, 8:]
    for found, wanted in zip(layer(precision).project(x, cos, sin), expected, strict=True):
        assert found.shape == wanted.shape
        assert_near(found, wanted, bits=7)  # and then to bfloat16


@capable
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_what_heads_and_network_find_is_added(batch: int, length: int, precision: Precision) -> None:
    x, heads = drawn(batch, length, 192, seed=20), drawn(batch, length, 6, 32, seed=21).bfloat16().transpose(1, 2)
    middle = x + product(heads.transpose(1, 2).flatten(2).float(), "out", precision)
    gate, up = product(normed(middle, "mlp"), "gate_up", precision).chunk(2, dim=-1)
    added = middle + product(F.silu(gate) * up, "down", precision) - x
    before = x.clone()
    layer(precision).finish(x, heads)
    assert_near(x - before, added, bits=7)


@capable
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_head_reads_scores_out(rows: int, precision: Precision) -> None:
    hidden = drawn(2, rows, 192, seed=22, size=9)
    matrix = packed(MATRICES["head"], precision)
    found = native.read_out(hidden, NORMS["mlp"], CONFIG.rms_norm_eps, matrix)
    assert_near(found, product(normed(hidden, "mlp"), "head", precision))


@capable
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_is_no_number_stays_none(precision: Precision) -> None:
    """A step that went wrong must be seen, and not be rounded to something harmless; other rows are none the worse."""
    matrix = packed(MATRICES["head"], precision)
    hidden = drawn(3, 192, seed=23)
    good = native.read_out(hidden, NORMS["mlp"], CONFIG.rms_norm_eps, matrix)
    hidden[1, 70] = torch.nan
    found = native.read_out(hidden, NORMS["mlp"], CONFIG.rms_norm_eps, matrix)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], good[[0, 2]])


@capable
def test_zeros_are_rounded_to_zeros() -> None:
    x = torch.zeros(1, 2, 192)
    layer().finish(x, torch.zeros(1, 6, 2, 32, dtype=torch.bfloat16))
    assert not x.any()
