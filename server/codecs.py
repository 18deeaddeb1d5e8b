"""How records travel over a WebSocket: JSON in text frames or msgpack in binary frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgpack

from server.bodies import parse_json
from server.errors import MalformedBody


class Codec(Protocol):
    """One subprotocol."""

    def decode(self, frame: str | bytes) -> Any:
        """The record in a frame. Raises `MalformedBody`."""

    def encode(self, record: Mapping[str, Any]) -> str | bytes:
        """A record as a frame: text or bytes tells the frame's type."""


class JsonCodec:
    """`palimpsest.v1+json`"""

    def decode(self, frame: str | bytes) -> Any:
        """See `Codec`."""
        if isinstance(frame, bytes):
            raise MalformedBody("send records of this subprotocol in text frames")
        return parse_json(frame)

    def encode(self, record: Mapping[str, Any]) -> str:
        """See `Codec`."""
        return json.dumps(record, ensure_ascii=False)


class MsgpackCodec:
    """`palimpsest.v1+msgpack`"""

    def decode(self, frame: str | bytes) -> Any:
        """See `Codec`."""
        if isinstance(frame, str):
            raise MalformedBody("send records of this subprotocol in binary frames")
        try:
            return msgpack.unpackb(frame)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise MalformedBody(f"the frame is not msgpack ({type(error).__name__})") from None

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """See `Codec`."""
        return msgpack.packb(record)  # type: ignore[no-any-return]


JSON: Final[Codec] = JsonCodec()
CODECS: Final[Mapping[str, Codec]] = MappingProxyType(
    {"palimpsest.v1+json": JSON, "palimpsest.v1+msgpack": MsgpackCodec()}
)
