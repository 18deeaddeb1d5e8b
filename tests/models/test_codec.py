"""States as bytes: exact on the way back, refused when anything is wrong, and never another error."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import MAGIC, VERSION, StateKind, check_values, decode_state, encode_state
from models.errors import StateError
from models.state import MemoryState, TensorSpec
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import (
    assert_same_bits,
    bits,
    build,
    feed,
    greedy,
    random_tokens,
    read,
    slots_config,
    window_config,
)

SPEC = {
    "position": TensorSpec((), torch.int64),
    "half": TensorSpec((2, 3), torch.bfloat16),
    "whole": TensorSpec((2, 2), torch.float32, fill=-torch.inf),
    "none": TensorSpec((0, 4), torch.float32),
    "small": TensorSpec((5,), torch.int8),
    "ids": TensorSpec((3,), torch.int32),
}
KIND = StateKind("model-1", "memory-1", SPEC)
PREFIX = struct.calcsize("<4sHI")


def sample() -> MemoryState:
    state = MemoryState.empty(SPEC, 1)
    state.write("position", torch.tensor(7))
    state.write("half", torch.tensor([[1.5, -0.0, torch.nan], [torch.inf, 3e38, 1e-40]]).bfloat16())
    state.write("whole", torch.tensor([1e-45, torch.nan]), 0)
    state.write("small", torch.tensor([-128, -1, 0, 1, 127], dtype=torch.int8))
    state.write("ids", torch.tensor([-(2**31), 0, 2**31 - 1], dtype=torch.int32))
    return state


SAVED = encode_state(sample(), KIND)


def forged(header: Any, body: bytes = b"") -> bytes:
    """Well framed, with the right digest, whatever is inside."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    whole = struct.pack("<4sHI", MAGIC, VERSION, len(packed)) + packed + body
    return whole + xxhash.xxh3_128_digest(whole)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<4sHI", data)[2]
    return msgpack.unpackb(data[PREFIX : PREFIX + length]), data[PREFIX + length : -16]


def test_every_bit_comes_back_in_every_dtype() -> None:
    assert_same_bits(bits(decode_state(SAVED, KIND)), bits(sample()))
    assert encode_state(decode_state(SAVED, KIND), KIND) == SAVED


def test_what_comes_back_is_a_copy_that_can_be_written_to() -> None:
    data = bytearray(SAVED)
    state = decode_state(bytes(data), KIND)
    state.reset(SPEC)
    assert bytes(data) == SAVED
    assert_same_bits(bits(state), bits(MemoryState.empty(SPEC, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [window_config(), slots_config(), slots_config(slot_dtype="int8")])
def test_a_restored_session_goes_on_bit_for_bit(checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> None:
    decoder = build(checkpoint, config, dtype)
    kind = StateKind("tiny", decoder.memory_fingerprint(), decoder.spec())
    tokens = random_tokens(decoder, 133)
    _, state = read(decoder, tokens[:70])
    restored = decode_state(encode_state(state, kind), kind)
    assert torch.equal(feed(decoder, state, tokens[70:]), feed(decoder, restored, tokens[70:]))
    assert_same_bits(bits(state), bits(restored))
    assert encode_state(state, kind) == encode_state(restored, kind)
    assert greedy(decoder, state, 5) == greedy(decoder, restored, 5)


def test_a_row_of_a_slab_is_saved_as_that_session_alone(checkpoint: Checkpoint) -> None:
    decoder = build(checkpoint, slots_config())
    kind = StateKind("tiny", decoder.memory_fingerprint(), decoder.spec())
    slab = decoder.empty_state(3)
    decoder(torch.tensor([random_tokens(decoder, 60, seed=row) for row in range(3)]), slab)
    for row in range(3):
        restored = decode_state(encode_state(slab.select([row]), kind), kind)
        assert_same_bits(bits(restored), bits(slab.select([row])))
    with pytest.raises(ValueError, match="one session"):
        encode_state(slab, kind)


def test_every_truncation_is_refused() -> None:
    for length in range(len(SAVED)):
        with pytest.raises(StateError, match="truncated"):
            decode_state(SAVED[:length], KIND)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SAVED) - 1), st.integers(0, 7))
def test_every_flipped_bit_is_refused(index: int, bit: int) -> None:
    data = bytearray(SAVED)
    data[index] ^= 1 << bit
    with pytest.raises(StateError):
        decode_state(bytes(data), KIND)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(data: bytes) -> None:
    for candidate in (data, MAGIC + data, SAVED + b"\0" + data, SAVED[:PREFIX] + data):
        with pytest.raises(StateError):
            decode_state(candidate, KIND)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_a_header_of_any_bytes_is_refused_even_with_its_digest(data: bytes) -> None:
    with pytest.raises(StateError):
        decode_state(forged(data), KIND)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({"model": _VALUES, "memory": _VALUES, "tensors": _VALUES}) | _VALUES)
def test_a_header_of_any_values_is_refused_even_with_its_digest(header: Any) -> None:
    with pytest.raises(StateError):
        decode_state(forged(header), KIND)


def test_a_header_nested_a_thousand_deep_is_refused() -> None:
    deep = b"\x91" * 1015 + b"\xc0"
    header = b"\x83" + b"".join(
        msgpack.packb(key) + value
        for key, value in (("model", deep), ("memory", msgpack.packb("m")), ("tensors", b"\x90"))
    )
    with pytest.raises(StateError):
        decode_state(forged(header), KIND)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"PK\3\4" + SAVED[4:], "no saved state"),
        (SAVED[:4] + struct.pack("<H", VERSION + 1) + SAVED[6:], f"reads format {VERSION}"),
        (SAVED[:6] + struct.pack("<I", 2**32 - 1) + SAVED[10:], "inside its header"),
        (SAVED[:6] + struct.pack("<I", 0) + SAVED[10:], "digest"),
        (SAVED + b"\0", "digest"),
        (SAVED + SAVED, "digest"),
        (forged(*header_of(SAVED))[:-1] + b"\0", "digest"),
        (forged({"model": "model-1"}), "header cannot be read"),
        (forged(header_of(SAVED)[0], b""), "promises"),
        (forged(header_of(SAVED)[0], header_of(SAVED)[1] + b"\0"), "promises"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    with pytest.raises(StateError, match=words):
        decode_state(data, KIND)


def test_a_state_of_another_model_memory_or_shape_is_refused() -> None:
    with pytest.raises(StateError, match=r"another model \(fingerprint model-1, here model-2\)"):
        decode_state(SAVED, replace(KIND, model="model-2"))
    with pytest.raises(StateError, match=r"another memory configuration.*settings that made it"):
        decode_state(SAVED, replace(KIND, memory="memory-2"))
    for changed in ({"ids": TensorSpec((4,), torch.int32)}, {"ids": TensorSpec((3,), torch.float32)}):
        with pytest.raises(StateError, match="tensors"):
            decode_state(SAVED, replace(KIND, spec={**SPEC, **changed}))


@pytest.mark.parametrize("size", [-36, 0, 10**6, 2**63, 2**64 - 1])
def test_lengths_that_lie_are_refused_before_anything_is_allocated(size: int) -> None:
    header, body = header_of(SAVED)
    header["tensors"][2][3] = size
    with pytest.raises(StateError, match=r"promises|tensors"):
        decode_state(forged(header, body), KIND)


def test_lengths_that_lie_in_pairs_are_refused() -> None:
    header, body = header_of(SAVED)
    header["tensors"][1][3] += 4
    header["tensors"][2][3] -= 4
    with pytest.raises(StateError, match="tensors"):
        decode_state(forged(header, body), KIND)


@pytest.mark.parametrize("count", [0, 10, 300])
def test_what_reading_leaves_is_found_sound(checkpoint: Checkpoint, count: int) -> None:
    decoder = build(checkpoint, slots_config())
    state = decoder.empty_state()
    if count:
        feed(decoder, state, random_tokens(decoder, count))
    check_values(state, decoder.spec(), decoder.config.vocab_size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ring_keys", torch.nan),
        ("hidden", -torch.inf),
        ("slot_score", torch.inf),
        ("slot_score", torch.nan),
        ("tokens", -1),
        ("tokens", 1 << 20),
        ("slot_token", 1 << 20),
    ],
)
def test_numbers_that_no_reading_leaves_are_found(checkpoint: Checkpoint, name: str, value: float) -> None:
    decoder = build(checkpoint, slots_config())
    _, state = read(decoder, random_tokens(decoder, 100))
    place = state.tensors()[name].reshape(-1)
    place[len(place) // 2] = value
    with pytest.raises(StateError, match=name):
        check_values(state, decoder.spec(), decoder.config.vocab_size)
