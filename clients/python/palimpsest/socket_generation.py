"""One generation on a WebSocket, synchronously."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from palimpsest.records import Record, generate_record
from palimpsest.sse import read_record
from palimpsest.types import Generation, GenerationCompleted, GenerationDelta

if TYPE_CHECKING:
    from palimpsest.websocket import SessionSocket


@dataclass
class Asked:
    """What one generation and its reader know of each other.

    Apart from both, so that a generation nobody iterates over any more is freed, and thereby cancelled, at once.
    """

    op_id: str
    unwanted: bool = False
    result: Generation | None = None


class SocketGeneration:
    """The deltas of one generation; `result` is the whole of it once iteration has ended."""

    def __init__(self, socket: SessionSocket, op_id: str, fields: Record) -> None:
        self._socket = socket
        self._asked = Asked(op_id)
        self._deltas = _read(socket, self._asked, fields)

    @property
    def result(self) -> Generation | None:
        """The whole generation; None until it has ended."""
        return self._asked.result

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationDelta:
        return next(self._deltas)

    def cancel(self) -> None:
        """Stop it; may be called from another thread."""
        self._asked.unwanted = True
        if self.result is None:
            self._socket.stop(self._asked.op_id)

    def close(self) -> None:
        """Leave it; cancels it unless it has ended."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(socket: SessionSocket, asked: Asked, fields: Record) -> Generator[GenerationDelta, None, None]:
    try:
        socket.post(asked.op_id, generate_record(asked.op_id, fields))
        if asked.unwanted:
            socket.stop(asked.op_id)
        while True:
            record = socket.receive(asked.op_id)
            event = read_record(str(record.get("type")), record)
            if isinstance(event, GenerationDelta):
                yield event
            elif isinstance(event, GenerationCompleted):
                asked.result = event.generation
                return
    except (GeneratorExit, KeyboardInterrupt):
        socket.stop(asked.op_id)
        raise
    finally:
        socket.end(asked.op_id)
