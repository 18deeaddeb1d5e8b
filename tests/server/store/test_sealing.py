from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Internal, StateRefused
from server.settings import load
from server.store import sealing
from server.store.sealing import MOST_BYTES, EncryptingSealer, PlainSealer, Sealer, create_sealer

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
ABOUT = ("tenant", "sess_one", "snapshot", 3)
TEXT = b"It was a dark and stormy night."

MAKERS: dict[str, Callable[[], Sealer]] = {
    "plain": PlainSealer,
    "encrypting": lambda: EncryptingSealer({"old": OLD}),
}


@pytest.fixture(params=MAKERS)
def sealer(request: pytest.FixtureRequest) -> Sealer:
    return MAKERS[request.param]()


@pytest.mark.parametrize("size", [0, 1, 40, 4095, 4096, 65_535, 65_536, 3 << 20])
def test_content_comes_back(sealer: Sealer, size: int) -> None:
    for content in (os.urandom(size), bytes(size)):
        assert sealer.open(sealer.seal(content, ABOUT), ABOUT) == content


@given(content=st.binary(max_size=5000), about=st.lists(st.text() | st.integers(0, 2**63), max_size=5))
def test_any_content_comes_back_under_any_name(content: bytes, about: list[str | int]) -> None:
    for make in MAKERS.values():
        assert make().open(make().seal(content, tuple(about)), tuple(about)) == content


@pytest.mark.parametrize(
    "content", [TEXT, b"", os.urandom(5000), bytes(70_000)], ids=["text", "empty", "long", "compressed"]
)
def test_any_flipped_bit_is_refused(sealer: Sealer, content: bytes) -> None:
    sealed = sealer.seal(content, ABOUT)
    for place in [*range(min(len(sealed), 120)), len(sealed) // 2, len(sealed) - 1]:
        for bit in range(8):
            altered = bytearray(sealed)
            altered[place] ^= 1 << bit
            with pytest.raises(StateRefused):
                sealer.open(bytes(altered), ABOUT)


@pytest.mark.parametrize("content", [TEXT, bytes(70_000)], ids=["text", "compressed"])
def test_content_that_is_cut_short_or_has_something_behind_it_is_refused(sealer: Sealer, content: bytes) -> None:
    sealed = sealer.seal(content, ABOUT)
    for wrong in [*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"]:
        with pytest.raises(StateRefused):
            sealer.open(wrong, ABOUT)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for make in MAKERS.values():
        with pytest.raises(StateRefused):
            make().open(noise, ABOUT)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (("a", "bc"), ("ab", "c")),
        (("a", 1), ("a", "1")),
        (("a", "b"), ("a", "b", "")),
        (("a",), ("b",)),
        (("tenant", "sess_one", "snapshot", 3), ("tenant", "sess_one", "snapshot", 4)),
        (("tenant", "sess_one", "snapshot", 3), ("other", "sess_one", "snapshot", 3)),
    ],
)
def test_content_opens_under_its_own_name_only(
    sealer: Sealer, stored: tuple[str | int, ...], asked: tuple[str | int, ...]
) -> None:
    sealed = sealer.seal(TEXT, stored)
    assert sealer.open(sealed, stored) == TEXT
    with pytest.raises(StateRefused, match="another name"):
        sealer.open(sealed, asked)


def test_a_short_entry_costs_few_bytes() -> None:
    assert len(PlainSealer().seal(TEXT, ABOUT)) - len(TEXT) == 10
    assert len(EncryptingSealer({"k1": OLD}).seal(TEXT, ABOUT)) - len(TEXT) == 45


def test_zeros_become_small_and_noise_does_not_grow(sealer: Sealer) -> None:
    assert len(sealer.seal(bytes(4 << 20), ABOUT)) < 2_000
    assert len(sealer.seal(os.urandom(4 << 20), ABOUT)) < (4 << 20) + 100


def test_nothing_of_encrypted_content_can_be_read_and_no_two_are_alike() -> None:
    sealer = EncryptingSealer({"k1": OLD})
    one, other = sealer.seal(TEXT * 9, ABOUT), sealer.seal(TEXT * 9, ABOUT)
    assert b"stormy" not in one
    assert one[6:] != other[6:]
    assert TEXT in PlainSealer().seal(TEXT, ABOUT)


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    before = EncryptingSealer({"old": OLD})
    after = EncryptingSealer({"new": NEW, "old": OLD})
    assert after.open(before.seal(TEXT, ABOUT), ABOUT) == TEXT
    sealed = after.seal(TEXT, ABOUT)
    assert EncryptingSealer({"new": NEW}).open(sealed, ABOUT) == TEXT
    with pytest.raises(StateRefused, match="add key 'new' to PALIMPSEST_ENCRYPTION_KEYS"):
        before.open(sealed, ABOUT)


def test_another_key_of_the_same_id_is_refused() -> None:
    sealed = EncryptingSealer({"k1": OLD}).seal(TEXT, ABOUT)
    with pytest.raises(StateRefused, match="'k1' in PALIMPSEST_ENCRYPTION_KEYS is not the key"):
        EncryptingSealer({"k1": NEW}).open(sealed, ABOUT)


def test_plain_content_opens_when_encryption_is_switched_on_and_not_the_reverse() -> None:
    encrypting = EncryptingSealer({"k1": OLD})
    assert encrypting.open(PlainSealer().seal(TEXT, ABOUT), ABOUT) == TEXT
    with pytest.raises(StateRefused, match="add key 'k1'"):
        PlainSealer().open(encrypting.seal(TEXT, ABOUT), ABOUT)


def test_the_plain_format_stays() -> None:
    short, long = TEXT, bytes(range(256)) * 16
    assert PlainSealer().seal(short, ABOUT) == b"\x01\x00" + _digest(b"\x01\x00", short) + short
    assert PlainSealer().seal(long, ABOUT) == b"\x02\x00" + _digest(b"\x02\x00", long) + long


def test_the_encrypted_format_stays() -> None:
    stored = (
        "0300026b31b19a42e8eba74ec6d5031a99ea2ccf10bc82a043426791a263a6d23ca1e934cbe1032767bac4c57455ae0d1726"
        "46dea9d5ff95f18fca787be12c02adf016dec73a86de257b67f0"
    )
    assert EncryptingSealer({"k1": OLD}).open(bytes.fromhex(stored), ABOUT) == TEXT


def _digest(header: bytes, body: bytes) -> bytes:
    name = b"\x94\xa6tenant\xa8sess_one\xa8snapshot\x03"
    kind = xxhash.xxh3_64_digest if header[0] == 1 else xxhash.xxh3_128_digest
    return kind(name + header + body)


def _compressed(frame: bytes, size: int) -> bytes:
    """A plain content whose digest is right, whatever is said about its size."""
    header = bytes([1 if len(frame) < 4096 else 2, 1]) + size.to_bytes(4, "little")
    return header + _digest(header, frame) + frame


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(100_000))
    assert PlainSealer().open(_compressed(frame, 100_000), ABOUT) == bytes(100_000)
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000))
    for altered in [
        _compressed(frame, 99_999),
        _compressed(frame, 100_001),
        _compressed(frame, MOST_BYTES + 1),
        _compressed(frame + b"\0", 100_000),
        _compressed(frame + frame, 100_000),
        _compressed(frame[:-1], 100_000),
        _compressed(endless, 100_000),
        _compressed(b"no frame", 8),
        _compressed(b"", 0),
    ]:
        with pytest.raises(StateRefused):
            PlainSealer().open(altered, ABOUT)


def test_kinds_and_packings_of_a_later_release_are_named() -> None:
    with pytest.raises(StateRefused, match="a kind that this release does not know"):
        PlainSealer().open(b"\x09\x00" + bytes(40), ABOUT)
    with pytest.raises(StateRefused, match="a packing that this release does not know"):
        PlainSealer().open(b"\x01\x09" + bytes(40), ABOUT)


def test_content_beyond_the_limit_is_not_stored(sealer: Sealer, monkeypatch: pytest.MonkeyPatch) -> None:
    compressible = sealer.seal(bytes(70_000), ABOUT)
    monkeypatch.setattr(sealing, "MOST_BYTES", 1000)
    with pytest.raises(StateRefused, match="declares 70000 bytes, more than 1000"):
        sealer.open(compressible, ABOUT)
    assert sealer.open(sealer.seal(bytes(1000), ABOUT), ABOUT) == bytes(1000)
    with pytest.raises(Internal):
        sealer.seal(bytes(1001), ABOUT)


def test_the_settings_choose_the_sealer(tmp_path: Path) -> None:
    assert isinstance(create_sealer(load(data_dir=tmp_path)), PlainSealer)
    keys = {"k2": base64.b64encode(NEW).decode(), "k1": base64.b64encode(OLD).decode()}
    sealed = create_sealer(load(data_dir=tmp_path, encryption_keys=keys)).seal(TEXT, ABOUT)
    assert EncryptingSealer({"k2": NEW}).open(sealed, ABOUT) == TEXT
