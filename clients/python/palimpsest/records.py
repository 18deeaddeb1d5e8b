"""WebSocket records: what is sent, how it is written as frames, and who receives which answer. No I/O."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx2
import msgpack
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from palimpsest.calls import session_path, text_or_messages
from palimpsest.errors import ConnectionFailed, PalimpsestError, SocketClosed, UnexpectedAnswer
from palimpsest.types import Message
from palimpsest.wire import api_error, decode, response_error

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


class Mailbox:
    """Sorts the records of one socket by the operation they answer.

    A generation's deltas name only the generation, so `generation.started` ties that name to the operation.
    Records of operations nobody waits for (an abandoned generation's last deltas) are dropped.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Record]] = {}
        self._generations: dict[str, str] = {}
        self._unwanted: set[str] = set()

    def open(self, key: str) -> None:
        """Keep records for this operation from now on."""
        self._waiting[key] = deque()

    def close(self, key: str) -> None:
        """Drop what is left of an operation, and what is still to come."""
        self._waiting.pop(key, None)

    def cancel(self, key: str) -> Record | None:
        """What to send to stop a generation; None while it has no name: `deliver` will ask for it then."""
        if key in self._generations:
            return cancel_record(self._generations[key])
        self._unwanted.add(key)
        return None

    def take(self, key: str) -> Record | None:
        """The oldest record for an operation, None if there is none yet. Raises the error that answers it."""
        records = self._waiting[key]
        if not records:
            return None
        record = records.popleft()
        if record.get("type") == "error":
            raise api_error(None, record)
        return record

    def deliver(self, record: Record) -> Record | None:
        """File a record; returns what must be sent because of it.

        An error that answers no operation in particular is raised at once.
        """
        kind, key = record.get("type"), self._key(record)
        if key is None:
            if kind == "error":
                raise api_error(None, record)
            return None
        if key in self._waiting:
            self._waiting[key].append(record)
        if kind == "generation.started":
            self._generations[key] = str(record.get("generation_id"))
            return self.cancel(key) if key in self._unwanted else None
        if kind in ("generation.completed", "error"):
            self._generations.pop(key, None)
            self._unwanted.discard(key)
        return None

    def _key(self, record: Record) -> str | None:
        """The operation a record belongs to."""
        if record.get("op_id") is not None:
            return str(record["op_id"])
        if record.get("type") in ("session.ready", "pong"):
            return str(record["type"])
        generation = record.get("generation")
        named = generation.get("id") if isinstance(generation, dict) else record.get("generation_id")
        return next((key for key, name in self._generations.items() if name == named), None)
