"""Small memories over the tiny model, and the ways in which a text can be fed to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.asked import Asked
from models.config import MemoryConfig
from models.memory import MECHANISMS
from models.memory.base import Memory
from models.memory.slots import SlotsConfig
from models.state import MemoryState
from models.transformer import Decoder, Weights
from models.weights.checkpoint import Checkpoint

ALL_HEADS = tuple((layer, head) for layer in range(4) for head in range(2))
SOME_HEADS = ((0, 1), (2, 0), (2, 1), (3, 0))


def window_config(**changes: Any) -> MemoryConfig:
    """A ring of 48 tokens, so that folds are frequent."""
    return MemoryConfig(**{"window": 32, "segment": 16, "sinks": 4, **changes})


def slots_config(**changes: Any) -> SlotsConfig:
    """A ring of 48 tokens and 24 slots in four heads, stored in the compute dtype."""
    small = {"window": 32, "segment": 16, "sinks": 4, "heads": SOME_HEADS, "slots": 24, "slot_dtype": "same"}
    return SlotsConfig(**{**small, "reach": 3, **changes})


def build(checkpoint: Checkpoint, config: MemoryConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """The checkpoint over the memory that `config` belongs to."""
    name = next(name for name, mechanism in MECHANISMS.items() if mechanism.config is type(config))
    tensors = {key: tensor.to(dtype) for key, tensor in checkpoint.tensors.items()}
    weights = Weights(checkpoint.config, tensors, checkpoint.rope_factors)
    return Decoder(weights, MECHANISMS[name].build(checkpoint.config, config, dtype).requires_grad_(False))


def open_memory(memory: Memory) -> None:
    """Give every learned parameter a value at which the memory has a large say, the same at every call."""
    generator = torch.Generator().manual_seed(17)
    for name, parameter in memory.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        start = torch.zeros_like(parameter) if name.endswith(("gate", "bias")) else parameter.detach()
        parameter.data = start + noise.to(parameter)


def asked_after(*folded: int) -> Asked:
    """A query whose numbers do not matter, of sessions that have evicted so many tokens."""
    nothing = torch.zeros(len(folded), 2, 2, 1, 32)
    return Asked(nothing, nothing, torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16), list(folded), list(folded))


def random_tokens(decoder: Decoder, count: int, seed: int = 0) -> list[int]:
    """Token ids that any vocabulary entry may be among."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(decoder.config.vocab_size, (count,), generator=generator).tolist()
    return ids


def feed(decoder: Decoder, state: MemoryState, tokens: Sequence[int], cuts: Sequence[int] = ()) -> Tensor:
    """Take `tokens` in, cut into chunks of the sizes `cuts` (again and again; whole without any). Logits (n, V)."""
    parts, begin, turn = [], 0, 0
    while begin < len(tokens):
        size = cuts[turn % len(cuts)] if cuts else len(tokens)
        chunk = torch.tensor([tokens[begin : begin + size]])
        parts.append(decoder(chunk, state, logits="all")[0][0])
        begin, turn = begin + size, turn + 1
    return torch.cat(parts)


def read(decoder: Decoder, tokens: Sequence[int], cuts: Sequence[int] = ()) -> tuple[Tensor, MemoryState]:
    """`feed` to a new session: logits (n, V) and the state."""
    state = decoder.empty_state()
    return feed(decoder, state, tokens, cuts), state


def greedy(decoder: Decoder, state: MemoryState, count: int) -> list[int]:
    """The likeliest continuation; consumes the state."""
    token = int(decoder.read_out(state.read("hidden"))[0].argmax())
    chosen = [token]
    while len(chosen) < count:
        logits, _ = decoder(torch.tensor([[token]]), state)
        token = int(logits[0].argmax())
        chosen.append(token)
    return chosen


def assert_same_state(one: MemoryState, other: MemoryState) -> None:
    """Integers equal; floats to 1e-4 of the tensor's largest entry; int8 to one step of rounding.

    Where slots are rounded, a difference in the last bit of float32 may tip one of them over to the next step, and all
    that is computed behind it moves along: then 1e-2.
    """
    others, tensors = other.tensors(), one.tensors()
    rounded = "slot_keys" in tensors and tensors["slot_keys"].dtype != tensors["ring_keys"].dtype
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            assert (tensor.int() - others[name].int()).abs().max() <= 1, name
        elif tensor.is_floating_point():
            finite = tensor.isfinite()
            assert torch.equal(finite, others[name].isfinite()), name
            ours, theirs = tensor[finite].float(), others[name][finite].float()
            largest = float(ours.abs().max()) if len(ours) else 0.0
            assert ((ours - theirs).abs() <= (1e-2 if rounded else 1e-4) * max(1.0, largest)).all(), name
        else:
            assert torch.equal(tensor, others[name]), name


def bits(state: MemoryState) -> dict[str, Tensor]:
    """A copy of every tensor, to be compared bit for bit."""
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Every tensor has the same bytes."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        same = torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), other[name].contiguous().view(-1).view(torch.uint8)
        )
        assert same, name
