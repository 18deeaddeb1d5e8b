"""The ring: constant size, every token somewhere, sinks in sight."""

from __future__ import annotations

import pytest
import torch

from models.config import MemoryConfig
from models.errors import ConfigError
from models.state import spec_nbytes
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import (
    ALL_HEADS,
    build,
    feed,
    random_tokens,
    read,
    slots_config,
    window_config,
)


@pytest.mark.parametrize("config", [window_config(), slots_config(slot_dtype="int8")], ids=["window", "slots"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_stay_and_numbers_stay_finite_over_twenty_thousand_tokens(
    checkpoint: Checkpoint, config: MemoryConfig, dtype: torch.dtype
) -> None:
    decoder = build(checkpoint, config, dtype)
    state = decoder.empty_state()
    size = spec_nbytes(decoder.spec())
    tokens = random_tokens(decoder, 1250 * config.segment, seed=4)
    for begin, end in ((0, 1), (1, 10), (10, 1000), (1000, 1250)):
        part = tokens[begin * config.segment : end * config.segment]
        last, _ = decoder(torch.tensor([part]), state)
        assert state.nbytes == size == sum(tensor.nbytes for tensor in state.tensors().values())
        assert last.isfinite().all()
    assert state.positions == [len(tokens)]
    for name, tensor in state.tensors().items():
        assert tensor.isfinite().all(), name
    if "key_scatter" in decoder.spec():
        scatter = state.read("key_scatter")[0]
        torch.testing.assert_close(scatter, scatter.mT, rtol=1e-4, atol=1e-2)
        assert (torch.linalg.eigvalsh(scatter) > 0).all()
        assert (state.read("slot_score")[0] > 0).all()


@pytest.mark.parametrize("length", [1, 47, 48, 49, 63, 64, 65, 200])
@pytest.mark.parametrize("sinks", [0, 4])
def test_every_token_is_in_ring_or_slots_once_if_there_is_room(checkpoint: Checkpoint, length: int, sinks: int) -> None:
    config = slots_config(heads=ALL_HEADS, slots=200, sinks=sinks)
    decoder = build(checkpoint, config)
    tokens = random_tokens(decoder, length)
    _, state = read(decoder, tokens, (13,))
    base = max(0, length // 16 * 16 - 32)
    ring = state.read("tokens")[0]
    assert [int(ring[position % config.ring]) for position in range(base, length)] == tokens[base:]
    for score, position, token in zip(
        *(state.read(name)[0] for name in ("slot_score", "slot_position", "slot_token")), strict=True
    ):
        filled = score > -torch.inf
        assert position[filled].tolist() == list(range(sinks, base))
        assert token[filled].tolist() == tokens[sinks:base]


def test_sinks_stay_in_sight_for_ever(checkpoint: Checkpoint) -> None:
    # Four layers hand a token on over at most four rings: after 400 tokens only sinks can carry it.
    for sinks in (0, 1, 4, 16):
        decoder = build(checkpoint, window_config(sinks=sinks))
        tokens = random_tokens(decoder, 400)
        plain, _ = read(decoder, tokens, (64,))
        other, _ = read(decoder, [tokens[0] ^ 1, *tokens[1:]], (64,))
        changed = not torch.equal(plain[-1], other[-1])
        assert changed == (sinks > 0), sinks


def test_a_token_after_the_sinks_is_forgotten_by_the_window(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, window_config(sinks=4))
    tokens = random_tokens(decoder, 400)
    plain, _ = read(decoder, tokens, (64,))
    for place, seen in ((3, True), (4, False), (367, True)):
        other, _ = read(decoder, [*tokens[:place], tokens[place] ^ 1, *tokens[place + 1 :]], (64,))
        assert torch.equal(plain[-1], other[-1]) != seen, place


def test_a_position_far_out_behaves_like_a_near_one(checkpoint: Checkpoint) -> None:
    # Without sinks and after more than four rings, where a session stands must not matter.
    decoder = build(checkpoint, window_config(sinks=0))
    tokens = random_tokens(decoder, 256)
    near, _ = read(decoder, tokens)
    state = decoder.empty_state()
    state.write("position", torch.tensor([48 * 1_000_000]))
    far = feed(decoder, state, tokens)
    torch.testing.assert_close(far[-16:], near[-16:], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"window": 0}, {"window": 16, "segment": 32}, {"window": 40}, {"segment": 0}, {"sinks": -1}, {"sinks": 17}],
)
def test_a_ring_that_cannot_work_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"window|sinks"):
        window_config(**changes)
