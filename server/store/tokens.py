"""Token ids as stores keep them: little-endian uint32, four bytes a token, nothing around them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from server.errors import Internal

TOKEN_BYTES = 4


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """`TOKEN_BYTES` bytes for each of `tokens`. Raises `Internal` for an id that is no whole number from 0 to 2**32 - 1."""
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error as error:
        raise Internal("Token ids must be whole numbers from 0 to 4,294,967,295") from error


def unpack_tokens(packed: bytes) -> list[int]:
    """The ids again. Raises `Internal` when `packed` is no whole number of tokens."""
    if len(packed) % TOKEN_BYTES:
        raise Internal(f"{len(packed)} bytes are no whole number of tokens of {TOKEN_BYTES} bytes each")
    return list(struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed))
