"""WebSocket records: where they go, what is sent, how it is written as frames. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import msgpack
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from palimpsest.calls import session_path, text_or_messages
from palimpsest.errors import ConnectionFailed, PalimpsestError, SocketClosed, UnexpectedAnswer
from palimpsest.types import Message, Session
from palimpsest.wire import api_error, decode, parse, response_error

Encoding = Literal["msgpack", "json"]
Record = dict[str, Any]

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of the largest frame taken from the server: a completed generation carries its log-probabilities."""

SUBPROTOCOLS: Mapping[Encoding, Subprotocol] = {
    "msgpack": Subprotocol("palimpsest.v1+msgpack"),
    "json": Subprotocol("palimpsest.v1+json"),
}


def socket_url(base: httpx2.URL, session_id: str) -> str:
    """The WebSocket address of a session, below the server's base address."""
    scheme = "wss" if base.scheme == "https" else "ws"
    path = base.raw_path.decode().rstrip("/") + session_path(session_id, "stream")
    return str(base.copy_with(scheme=scheme, raw_path=path.encode()))


@dataclass(frozen=True)
class Endpoint:
    """Where a socket connects to, and how: the header that says as whom, and how records are written."""

    url: str
    authorization: str | None
    encoding: Encoding

    def options(self) -> dict[str, Any]:
        """Arguments of either `connect` of the WebSocket library."""
        return {
            "subprotocols": [SUBPROTOCOLS[self.encoding]],
            "additional_headers": {"authorization": self.authorization} if self.authorization else {},
            "compression": None,
            "max_size": MAX_FRAME,
        }

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise failures of the WebSocket library as errors of this package."""
        try:
            yield
        except (WebSocketException, OSError) as error:
            raise socket_error(error, self.url) from error


def write(record: Record, encoding: Encoding) -> str | bytes:
    """One record as the payload of a frame: text for JSON, binary for msgpack."""
    if encoding == "json":
        return json.dumps(record, ensure_ascii=False)
    packed: bytes = msgpack.packb(record)
    return packed


def read(frame: str | bytes) -> Record:
    """The record in a frame; which of the two it is shows from the kind of frame."""
    if isinstance(frame, str):
        return decode(frame)
    try:
        record = msgpack.unpackb(frame)
    except (ValueError, msgpack.UnpackException):
        record = None
    if not isinstance(record, dict):
        raise UnexpectedAnswer("the server sent a binary frame that is not a msgpack record")
    return record


def append_record(op_id: str, text: str | None, messages: Sequence[Message] | None) -> Record:
    """Ask the server to take in text or messages."""
    return {"type": "append", "op_id": op_id, **text_or_messages(text, messages)}


def generate_record(op_id: str, fields: Mapping[str, Any]) -> Record:
    """Ask for a generation."""
    return {"type": "generate", "op_id": op_id, **fields}


def cancel_record(generation_id: str) -> Record:
    """Stop a generation."""
    return {"type": "cancel", "generation_id": generation_id}


def resume_record(op_id: str, generation_id: str, after: int) -> Record:
    """Ask for the events of a generation behind number `after`."""
    return {"type": "resume", "op_id": op_id, "generation_id": generation_id, "after": after}


def greeting(record: Record) -> Session:
    """The session in the first record of a connection. Raises the error that came instead."""
    if record.get("type") == "error":
        raise api_error(None, record)
    return parse(Session, record.get("session"))


def socket_error(error: WebSocketException | OSError, url: str) -> PalimpsestError:
    """What a failure of the WebSocket library means to a caller."""
    if isinstance(error, ConnectionClosed):
        code = error.rcvd.code if error.rcvd else 1006
        reason = (error.rcvd.reason if error.rcvd else "") or "the connection was lost"
        return SocketClosed(f"the WebSocket was closed ({code}): {reason}", code=code)
    if isinstance(error, InvalidStatus):
        answer = error.response
        headers = {name.lower(): value for name, value in answer.headers.raw_items()}
        return response_error(answer.status_code, bytes(answer.body or b""), headers)
    return ConnectionFailed(f"cannot connect to {url}: {error or type(error).__name__}", refused=True)
