from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Internal, InvalidRequest
from server.keys import ExportKey
from server.portable import MOST_HEADER_BYTES, PortableSession, pack, unpack
from server.signing import Keyring
from server.store.tokens import pack_tokens

HMAC = Keyring([ExportKey("h", "hmac", bytes(range(32)))])
ED25519 = Keyring([ExportKey("e", "ed25519-private", bytes(range(32)))])
MOST = 64 << 20

SESSION = PortableSession(
    model="a-model",
    model_fingerprint="0123456789abcdef0123456789abcdef",
    memory="slots",
    position=108,
    open_text=" and so",
    open_tokens=3,
    turn="none",
    metadata={"title": "Größe"},
    created_at=1_700_000_000.25,
    snapshot=b"a state",
    snapshot_position=100,
    tail=[1, 2, 2**32 - 1, 4, 5],
)
FRESH = replace(
    SESSION, snapshot=None, snapshot_position=0, tail=[], position=0, open_text="", open_tokens=0, metadata={}
)


def file_of(session: PortableSession, keyring: Keyring = HMAC) -> bytes:
    return b"".join(pack(session, keyring))


FILE = file_of(SESSION)
HEADER_END = 14 + struct.unpack_from("<I", FILE, 10)[0]


def refusal(data: bytes, keyring: Keyring = HMAC, most_bytes: int = MOST) -> str:
    """Why `data` is refused; only one kind of error may come out."""
    with pytest.raises(InvalidRequest) as caught:
        unpack(data, keyring, most_bytes)
    assert caught.value.code == "import_refused"
    return caught.value.message


def part(content: bytes, **changes: Any) -> dict[str, Any]:
    whole = {"stored": len(content), "size": len(content), "packing": "none"}
    return {**whole, "sha256": hashlib.sha256(content).digest(), **changes}


def forged(*, raw_header: bytes | None = None, state: bytes = b"a state", **changes: Any) -> bytes:
    """A file with anything in its header, signed as it should be."""
    tail = pack_tokens(SESSION.tail)
    fields = {
        "algorithm": "hmac-sha256",
        "key_id": "h",
        "model": "m",
        "model_fingerprint": "f",
        "memory": "slots",
        "position": 108,
        "open_text": "",
        "open_tokens": 3,
        "turn": "none",
        "metadata": {},
        "created_at": 0.0,
        "snapshot_position": 100,
        "snapshot": part(state),
        "tail": part(tail),
        **changes,
    }
    header = msgpack.packb(fields) if raw_header is None else raw_header
    signed = b"PLMPSESS" + struct.pack("<HI", 1, len(header)) + header
    return signed + HMAC.sign(signed) + state + tail


@pytest.mark.parametrize("keyring", [HMAC, ED25519], ids=["hmac", "ed25519"])
@pytest.mark.parametrize(
    "session",
    [
        SESSION,
        FRESH,
        replace(SESSION, snapshot=None, snapshot_position=0, position=8),
        replace(SESSION, snapshot=b""),
        replace(SESSION, snapshot=os.urandom(3 << 20)),
        replace(SESSION, snapshot=bytes(3 << 20)),
    ],
    ids=["whole", "fresh", "tail only", "empty snapshot", "noise", "zeros"],
)
def test_a_session_comes_back(session: PortableSession, keyring: Keyring) -> None:
    assert unpack(file_of(session, keyring), keyring, MOST) == session


def test_the_file_comes_in_chunks_and_unused_memory_weighs_nothing() -> None:
    chunks = list(pack(replace(SESSION, snapshot=os.urandom(3_000_000)), HMAC))
    assert max(map(len, chunks)) == 1 << 20
    assert len(file_of(replace(SESSION, snapshot=bytes(3_000_000)))) < 2_000


def test_the_format_stays() -> None:
    assert unpack(forged(), HMAC, MOST).tail == SESSION.tail
    assert FILE[:10] == b"PLMPSESS\x01\x00"
    assert FILE[HEADER_END : HEADER_END + 32] == HMAC.sign(FILE[:HEADER_END])
    assert FILE[HEADER_END + 32 :] == b"a state" + pack_tokens(SESSION.tail)


def test_any_flipped_bit_is_refused() -> None:
    for keyring in (HMAC, ED25519):
        file = file_of(SESSION, keyring)
        step = 1 if keyring is HMAC else 3  # Ed25519 takes longer
        for place in range(0, len(file), step):
            for bit in range(8):
                altered = bytearray(file)
                altered[place] ^= 1 << bit
                with pytest.raises(InvalidRequest):
                    unpack(bytes(altered), keyring, MOST)


def test_a_file_cut_short_or_with_something_behind_it_is_refused() -> None:
    for length in range(len(FILE)):
        refusal(FILE[:length])
    assert "instead of" in refusal(FILE + b"\0")


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    refusal(noise)
    refusal(forged(raw_header=noise))
    refusal(b"PLMPSESS\x01\x00" + noise)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted({"algorithm", "key_id", "position", "metadata", "snapshot", "tail", "turn"})),
    value=values,
)
def test_a_field_of_any_value_is_refused_or_harmless(name: str, value: Any) -> None:
    try:
        session = unpack(forged(**{name: value}), HMAC, MOST)
    except InvalidRequest:
        return
    assert session.position == 108
    assert all(type(key) is type(text) is str for key, text in session.metadata.items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"position": 109}, "do not add up to the position"),
        ({"position": -1}, "position: "),
        ({"position": "108"}, "position: "),
        ({"open_tokens": 2**60}, "open_tokens: "),
        ({"created_at": float("nan")}, "created_at: "),
        ({"created_at": 1e300}, "created_at: "),
        ({"turn": "mine"}, "turn: "),
        ({"extra": 1}, "extra: "),
        ({"metadata": {"k": "v" * 513}}, "metadata.k: "),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata: "),
        ({"open_text": "x" * 16_385}, "open_text: "),
        ({"model": None}, "model: "),
        ({"algorithm": "none"}, "algorithm: "),
        ({"key_id": ""}, "key_id: "),
        ({"snapshot": None}, "no snapshot that could cover a position"),
        ({"snapshot": part(b"a state", size=8)}, "snapshot: what is not packed has one size"),
        ({"snapshot": part(b"a state", stored=8, size=8)}, "instead of"),
        ({"snapshot": part(b"a state", stored=2**50, size=2**50)}, "unpacks to"),
        ({"snapshot": part(b"a state", size=2**50, packing="zstd")}, "unpacks to"),
        ({"snapshot": part(b"a state", size=9, packing="zstd")}, "cannot be decompressed"),
        ({"snapshot": part(b"a state", sha256=bytes(32))}, "its snapshot does not match the digest"),
        ({"snapshot": part(b"a state", sha256=b"")}, "snapshot.sha256: "),
        ({"tail": part(pack_tokens(SESSION.tail), sha256=bytes(32))}, "its tail does not match the digest"),
        ({"tail": part(bytes(19))}, "whole tokens"),
        ({"tail": part(b"", stored=2**40, size=2**40), "position": 103 + 2**38}, "whole tokens"),
        ({"tail": part(b"", packing="zstd")}, "whole tokens"),
        ({"tail": None}, "tail: "),
    ],
)
def test_a_signed_file_that_contradicts_itself_is_refused(changes: dict[str, Any], why: str) -> None:
    assert why in refusal(forged(**changes))


def test_what_a_snapshot_unpacks_to_is_limited_before_it_is_unpacked() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(2_000_000))
    file = forged(state=frame, snapshot=part(frame, size=2_000_000, packing="zstd"))
    assert unpack(file, HMAC, 2_000_000).snapshot == bytes(2_000_000)
    assert "unpacks to 2000000 bytes" in refusal(file, most_bytes=1_999_999)
    lying = forged(state=frame, snapshot=part(frame, size=1_000_000, packing="zstd"))
    assert "declares 2000000 bytes" in refusal(lying, most_bytes=1_500_000)


def test_the_size_of_the_file_is_limited_first() -> None:
    assert "at most 100 may be imported" in refusal(bytes(101), most_bytes=100)
    assert unpack(FILE, HMAC, len(FILE)) == SESSION
    refusal(FILE, most_bytes=len(FILE) - 1)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\x00\x01\xff\x00" * 25_000,
        b"\xdc\xff\xff" * 40_000,
        b"\xdf\x00\x01\x00\x00\xa1x" * 18_000,
        b"\x81\xa1x" * 40_000 + b"\xc0",
        b"\x91" * MOST_HEADER_BYTES,
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xa2\xed\xa0",
        b"\xc1",
        b"",
    ],
    ids=[
        "arrays 32",
        "arrays 16",
        "maps 32",
        "maps",
        "deep",
        "string",
        "bytes",
        "ext",
        "time",
        "utf-8",
        "unused",
        "empty",
    ],
)
def test_a_header_made_to_hurt_costs_little(bomb: bytes) -> None:
    file = forged(raw_header=bomb)
    tracemalloc.start()
    try:
        refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_header_longer_than_any_is_not_read() -> None:
    assert "header is too long" in refusal(forged(raw_header=bytes(MOST_HEADER_BYTES + 1)))


def test_the_largest_header_fits() -> None:
    large = replace(
        SESSION,
        model="\U0001f600" * 1024,
        model_fingerprint="\U0001f600" * 128,
        memory="\U0001f600" * 128,
        open_text="\U0001f600" * 16_384,
        metadata={f"{number:02}" + "\U0001f600" * 62: "\U0001f600" * 512 for number in range(16)},
    )
    assert unpack(file_of(large), HMAC, MOST) == large


def test_other_versions_and_other_files_are_named() -> None:
    assert "format 2, and this release reads format 1" in refusal(FILE[:8] + b"\x02" + FILE[9:])
    assert "no exported session" in refusal(b"\x7fELF" + FILE)


def test_a_key_of_another_server_is_named() -> None:
    with pytest.raises(InvalidRequest, match="key 'e'") as caught:
        unpack(file_of(SESSION, ED25519), HMAC, MOST)
    assert caught.value.code == "unknown_export_key"


def test_another_key_of_the_same_id_is_refused() -> None:
    assert "signature" in refusal(FILE, Keyring([ExportKey("h", "hmac", bytes(32))]))


@pytest.mark.parametrize("wrong", [{"position": 5}, {"metadata": {"k": "v" * 600}}, {"created_at": -1.0}])
def test_a_session_that_nobody_would_import_is_not_exported(wrong: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="cannot be exported"):
        pack(replace(SESSION, **wrong), HMAC)
