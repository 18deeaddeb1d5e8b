"""Cuts a stream of bytes into pieces of text that do not depend on how the network cut it."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from server.errors import MalformedBody

PIECE_CHARACTERS = 16_384


@dataclass(frozen=True)
class Piece:
    """A run of the text: exactly `PIECE_CHARACTERS` long unless it is the last."""

    index: int
    text: str
    last: bool


async def pieces(chunks: AsyncIterator[bytes], size: int = PIECE_CHARACTERS) -> AsyncGenerator[Piece, None]:
    """Decode UTF-8 and cut it anew. The next chunk is asked for only when the piece before has been taken.

    A full piece is held until one more character is there, so that the last one can be marked.
    Raises `MalformedBody` at bytes that are not UTF-8, after every full piece before them.
    """
    decoder = _Decoder()
    pending, index = "", 0
    async for chunk in chunks:
        pending += decoder.feed(chunk)
        start = 0
        while len(pending) - start > size:
            yield Piece(index, pending[start : start + size], last=False)
            start, index = start + size, index + 1
        pending = pending[start:]
        decoder.check()
    decoder.finish()
    if pending:
        yield Piece(index, pending, last=True)


class _Decoder:
    """An incremental UTF-8 decoder that gives what is sound before it complains."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._fed = 0
        self._fault: int | None = None

    def feed(self, chunk: bytes) -> str:
        """The characters that are complete with this chunk."""
        self._fed += len(chunk)
        try:
            return self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            self._fault = self._fed - len(error.object) + error.start
            return error.object[: error.start].decode()

    def check(self) -> None:
        """Raise if the bytes fed last were not UTF-8."""
        if self._fault is not None:
            raise MalformedBody(f"the body is not UTF-8: see byte {self._fault}")

    def finish(self) -> None:
        """Raise if the stream ends within a character."""
        try:
            self._decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            start = self._fed - len(error.object)
            raise MalformedBody(f"the body is not UTF-8: its last character, at byte {start}, is cut off") from None
