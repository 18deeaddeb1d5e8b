"""How content lies in a store: digested, or encrypted where keys are set; compressed where that pays.

    plain      kind u8 | packing u8 | [size u32] | xxh3 digest, 8 or 16 bytes | body
    encrypted  kind u8 | packing u8 | [size u32] | id length u8 | key id | what encryption.py makes of the body

`size`, little-endian, is there when the body is compressed: how many bytes it holds. Digest and tag cover the content's name, all
that stands before them, and the body. A digest finds damage, not forgery; a tag finds both.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Protocol

import msgpack
import xxhash

from server.errors import Internal, StateRefused
from server.keys import encryption_keys
from server.settings import Settings
from server.store.compression import compressed, decompressed
from server.store.encryption import decrypted, encrypted

MOST_BYTES = 1 << 30
"""Content that declares more is refused before anything is allocated for it."""
SHORT_BYTES = 4096
"""Bodies below this have a digest of 8 bytes, others one of 16."""

About = tuple[str | int, ...]

_SHORT, _LONG, _ENCRYPTED = 1, 2, 3
_AS_IT_IS, _ZSTD = 0, 1
_SIZE = struct.Struct("<I")


class Sealer(Protocol):
    """Wraps bytes on their way into a store. Both methods block for as long as the content is large."""

    def seal(self, content: bytes, about: About) -> bytes:
        """The bytes to store. `about` names what they are (tenant, session, kind, number): they open under that name only."""

    def open(self, sealed: bytes, about: About) -> bytes:
        """The content again. Raises `StateRefused` for bytes that are cut short, altered, of another name or an unknown key."""


def create_sealer(settings: Settings) -> Sealer:
    """The sealer that `encryption_keys` ask for."""
    keys = encryption_keys(settings.encryption_keys)
    return EncryptingSealer(keys) if keys else PlainSealer()


class PlainSealer:
    """Digests, and does not encrypt. Safe to use from many threads."""

    def seal(self, content: bytes, about: About) -> bytes:
        """See `Sealer.seal`."""
        packing, body = _pack(content)
        header = bytes([_SHORT if len(body) < SHORT_BYTES else _LONG]) + packing
        return b"".join([header, _digest(header, body, about), body])

    def open(self, sealed: bytes, about: About) -> bytes:
        """See `Sealer.open`."""
        return _opened(sealed, about, {})


class EncryptingSealer:
    """Encrypts with the first key; opens what any key encrypted, and what was stored plain. Safe to use from many threads."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """`keys` are 32 bytes each, by id."""
        assert keys, "PlainSealer is for stores without keys"
        self._keys = dict(keys)
        self._key_id, self._key = next(iter(self._keys.items()))

    def seal(self, content: bytes, about: About) -> bytes:
        """See `Sealer.seal`."""
        packing, body = _pack(content)
        key_id = self._key_id.encode()
        header = b"".join([bytes([_ENCRYPTED]), packing, bytes([len(key_id)]), key_id])
        return header + encrypted(self._key, body, _name(about) + header)

    def open(self, sealed: bytes, about: About) -> bytes:
        """See `Sealer.open`."""
        return _opened(sealed, about, self._keys)


def _pack(content: bytes) -> tuple[bytes, bytes]:
    """How the body is packed, as the header says it, and the body."""
    if len(content) > MOST_BYTES:
        raise Internal(f"{len(content)} bytes are more than a store takes at once ({MOST_BYTES})")
    body = compressed(content)
    if body is None:
        return bytes([_AS_IT_IS]), content
    return bytes([_ZSTD]) + _SIZE.pack(len(content)), body


def _opened(sealed: bytes, about: About, keys: Mapping[str, bytes]) -> bytes:
    reader = _Reader(sealed)
    kind = reader.byte()
    size = _read_packing(reader)
    body: bytes | memoryview
    if kind in (_SHORT, _LONG):
        body = _undigested(reader, kind, about)
    elif kind == _ENCRYPTED:
        body = _decrypted(reader, about, keys)
    else:
        raise _unknown("kind")
    if size is None:
        return bytes(body)
    try:
        return decompressed(body, size)
    except ValueError as error:
        raise StateRefused(f"Stored content cannot be decompressed: {error}.") from error


def _read_packing(reader: _Reader) -> int | None:
    """The size that a compressed body declares."""
    packing = reader.byte()
    if packing == _AS_IT_IS:
        return None
    if packing != _ZSTD:
        raise _unknown("packing")
    (size,) = _SIZE.unpack(reader.take(_SIZE.size))
    if size > MOST_BYTES:
        raise StateRefused(f"Stored content declares {size} bytes, more than {MOST_BYTES}: it is altered.")
    return int(size)


def _undigested(reader: _Reader, kind: int, about: About) -> memoryview:
    header = reader.passed()
    digest = reader.take(8 if kind == _SHORT else 16)
    body = reader.rest()
    if digest != _digest(header, body, about):
        raise StateRefused("Stored content does not match its digest: it is damaged, or was stored under another name.")
    return body


def _decrypted(reader: _Reader, about: About, keys: Mapping[str, bytes]) -> bytes:
    key_id = bytes(reader.take(reader.byte())).decode("ascii", "backslashreplace")
    header = reader.passed()
    if key_id not in keys:
        raise StateRefused(f"Stored content is encrypted: add key {key_id!r} to PALIMPSEST_ENCRYPTION_KEYS.")
    try:
        return decrypted(keys[key_id], reader.rest(), _name(about) + header)
    except ValueError as error:
        raise StateRefused(
            f"Stored content cannot be decrypted: {error}. It is damaged, was stored under another name, or {key_id!r} in "
            "PALIMPSEST_ENCRYPTION_KEYS is not the key that encrypted it."
        ) from error


def _digest(header: bytes | memoryview, body: bytes | memoryview, about: About) -> bytes:
    digest = xxhash.xxh3_64() if header[0] == _SHORT else xxhash.xxh3_128()
    for part in (_name(about), header, body):
        digest.update(part)
    return digest.digest()


def _name(about: About) -> bytes:
    # A msgpack array says where it ends, so that no two names, nor a name and what follows it, read alike.
    return msgpack.packb(about)  # type: ignore[no-any-return]


def _unknown(what: str) -> StateRefused:
    return StateRefused(
        f"Stored content has a {what} that this release does not know: it is altered, or of a newer release."
    )


class _Reader:
    """Takes sealed bytes apart from the front, without copying them."""

    def __init__(self, sealed: bytes) -> None:
        self._sealed = memoryview(sealed)
        self._at = 0

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, count: int) -> memoryview:
        if self._at + count > len(self._sealed):
            raise StateRefused("Stored content is cut short.")
        part = self._sealed[self._at : self._at + count]
        self._at += count
        return part

    def passed(self) -> memoryview:
        """Everything taken so far."""
        return self._sealed[: self._at]

    def rest(self) -> memoryview:
        """Everything not taken yet."""
        return self._sealed[self._at :]
