"""A session as a signed file, to be imported elsewhere. docs/export.md describes it.

    magic "PLMPSESS" | version u16 | header length u32 | header (msgpack) | signature | snapshot | tail

The signature covers all before it; the header has size and SHA-256 of what comes behind. Nothing in a file is used before every
check is through, and nothing is allocated that the file's own size or the importer's limit does not allow.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import Internal, InvalidRequest
from server.schemas.requests import Metadata
from server.signing import SIGNATURE_BYTES, Algorithm, Keyring
from server.store.base import Turn
from server.store.compression import compressed, decompressed
from server.store.tokens import TOKEN_BYTES, pack_tokens, unpack_tokens

MAGIC = b"PLMPSESS"
VERSION = 1
MOST_HEADER_BYTES = 128 << 10
MOST_TAIL_TOKENS = 1 << 22
"""Far above what a session holds unread; a list of more would take an importer gigabytes."""

_PREFIX = struct.Struct("<8sHI")
_CHUNK_BYTES = 1 << 20

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Sha256 = Annotated[bytes, Field(min_length=32, max_length=32)]


@dataclass(frozen=True)
class PortableSession:
    """All of a session that goes with it: what its memory is of, its record, its snapshot and the journal behind that."""

    model: str
    model_fingerprint: str
    memory: str
    position: int
    open_text: str
    open_tokens: int
    turn: Turn
    metadata: Mapping[str, str]
    created_at: float
    snapshot: bytes | None
    snapshot_position: int
    """Tokens folded into the snapshot; 0 without one."""
    tail: Sequence[int]
    """Tokens behind the snapshot; `open_tokens` are not among them."""


class _Part(BaseModel):
    """Something behind the header: how long it is there, and once unpacked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    stored: Count
    size: Count
    packing: Literal["none", "zstd"]
    sha256: Sha256

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.packing == "none" and self.stored != self.size:
            raise ValueError("what is not packed has one size")
        return self


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    algorithm: Algorithm
    key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
    model: Annotated[str, Field(max_length=1024)]
    model_fingerprint: Annotated[str, Field(max_length=128)]
    memory: Annotated[str, Field(max_length=128)]
    position: Count
    open_text: Annotated[str, Field(max_length=16384)]
    open_tokens: Count
    turn: Turn
    metadata: Metadata
    created_at: Annotated[float, Field(ge=0, lt=1 << 40)]
    snapshot_position: Count
    snapshot: _Part | None
    tail: _Part

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tokens, left = divmod(self.tail.size, TOKEN_BYTES)
        if left or tokens > MOST_TAIL_TOKENS or self.tail.packing != "none":
            raise ValueError(f"the tail must be at most {MOST_TAIL_TOKENS} whole tokens")
        if self.snapshot is None and self.snapshot_position:
            raise ValueError("there is no snapshot that could cover a position")
        if self.snapshot_position + tokens + self.open_tokens != self.position:
            raise ValueError("snapshot, tail and open tokens do not add up to the position")
        return self


def pack(session: PortableSession, keyring: Keyring) -> Iterator[bytes]:
    """The file in chunks of at most 1 MiB. Blocks for as long as the snapshot is large, most of it before the first chunk.

    Raises `Internal` for a session that no server would import.
    """
    snapshot, tail = session.snapshot, pack_tokens(session.tail)
    small = None if snapshot is None else compressed(snapshot)
    body = small or snapshot or b""
    fields = {
        "algorithm": keyring.algorithm,
        "key_id": keyring.key_id,
        "model": session.model,
        "model_fingerprint": session.model_fingerprint,
        "memory": session.memory,
        "position": session.position,
        "open_text": session.open_text,
        "open_tokens": session.open_tokens,
        "turn": session.turn,
        "metadata": dict(session.metadata),
        "created_at": session.created_at,
        "snapshot_position": session.snapshot_position,
        "snapshot": None if snapshot is None else _part(body, len(snapshot), packed=small is not None),
        "tail": _part(tail, len(tail), packed=False),
    }
    try:
        header = msgpack.packb(_Header.model_validate(fields).model_dump())
    except ValidationError as error:
        raise Internal(f"the session cannot be exported: {_first(error)}") from None
    signed = _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    assert len(header) <= MOST_HEADER_BYTES, "the limits of its fields keep the header below its own"
    return _chunks(signed + keyring.sign(signed), body, tail)


def unpack(data: bytes, keyring: Keyring, most_bytes: int) -> PortableSession:
    """What a file holds, once all of it has been checked. Blocks for as long as the file is large.

    `most_bytes` limits the file, and the snapshot in it once unpacked. Raises `InvalidRequest`: `unknown_export_key` for a key
    that is not in the ring, `import_refused` for everything else. Whether model and memory fit is for the caller to compare.
    """
    if len(data) > most_bytes:
        _refuse(f"it has {len(data)} bytes, and at most {most_bytes} may be imported")
    view = memoryview(data)
    header, signed = _read_header(data)
    snapshot_size = header.snapshot.size if header.snapshot else 0
    if snapshot_size > most_bytes:
        _refuse(f"its snapshot unpacks to {snapshot_size} bytes, and at most {most_bytes} may be imported")
    begin = signed + SIGNATURE_BYTES[header.algorithm]
    middle = begin + (header.snapshot.stored if header.snapshot else 0)
    end = middle + header.tail.stored
    if end != len(data):
        _refuse(f"it has {len(data)} bytes instead of {end}, so that it is cut short or altered")
    keyring.verify(header.key_id, header.algorithm, data[:signed], data[signed:begin])
    snapshot = None if header.snapshot is None else _content(view[begin:middle], header.snapshot, "snapshot")
    tail = unpack_tokens(_content(view[middle:end], header.tail, "tail"))
    return PortableSession(
        **header.model_dump(exclude={"algorithm", "key_id", "snapshot", "tail"}), snapshot=snapshot, tail=tail
    )


def _read_header(data: bytes) -> tuple[_Header, int]:
    """The header, and where it ends."""
    if data[: len(MAGIC)] != MAGIC:
        _refuse("it is no exported session")
    if len(data) < _PREFIX.size:
        _refuse("it is cut short")
    _, version, length = _PREFIX.unpack_from(data)
    if version != VERSION:
        _refuse(f"it is of format {version}, and this release reads format {VERSION}")
    end = _PREFIX.size + length
    if length > MOST_HEADER_BYTES or end > len(data):
        _refuse("its header is too long, so that it is cut short or altered")
    try:
        return _Header.model_validate(_read_map(data[_PREFIX.size : end])), end
    except ValidationError as error:
        _refuse(f"in its header, {_first(error)}")
    except ValueError:  # the base of all that msgpack raises for bytes like these
        _refuse("its header cannot be read")


def _read_map(header: bytes) -> Any:
    # A header needs no arrays. Without this limit, nested ones that declare themselves large take gigabytes in 100 KiB.
    return msgpack.unpackb(header, max_array_len=0, max_map_len=64, max_bin_len=64, max_ext_len=0)


def _content(stored: memoryview, part: _Part, name: str) -> bytes:
    if hashlib.sha256(stored).digest() != part.sha256:
        _refuse(f"its {name} does not match the digest in its header, so that it was altered")
    if part.packing == "none":
        return bytes(stored)
    try:
        return decompressed(stored, part.size)
    except ValueError as error:
        _refuse(f"its {name} cannot be decompressed: {error}")


def _part(stored: bytes, size: int, *, packed: bool) -> _Part:
    packing: Literal["none", "zstd"] = "zstd" if packed else "none"
    return _Part(stored=len(stored), size=size, packing=packing, sha256=hashlib.sha256(stored).digest())


def _chunks(*parts: bytes) -> Iterator[bytes]:
    for part in parts:
        for start in range(0, len(part), _CHUNK_BYTES):
            yield part[start : start + _CHUNK_BYTES]


def _first(error: ValidationError) -> str:
    """What is wrong with the first wrong field, without its value."""
    detail = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part)[:64] for part in detail["loc"])
    text = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"The file cannot be imported: {why}.", code="import_refused")
