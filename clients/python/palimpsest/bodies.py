"""Streamed bodies: files and iterables of text, and exported sessions, read in pieces, never whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeGuard

PIECE = 64 * 1024
"""Bytes, or characters of a text file, read at a time."""


class Readable(Protocol):
    """A file open for reading, as text or as bytes."""

    def read(self, size: int, /) -> str | bytes: ...


TextSource = Readable | Iterable[str] | Iterable[bytes]
AsyncTextSource = TextSource | AsyncIterable[str] | AsyncIterable[bytes]


def _encode(piece: str | bytes) -> bytes:
    return piece.encode() if isinstance(piece, str) else piece


def _is_file(source: object) -> TypeGuard[Any]:
    return hasattr(source, "read")


def rewinder(source: object) -> Callable[[], None] | None:
    """A function that puts a file back to where it stands now; None for what can be read but once."""
    if isinstance(source, str | bytes):
        return lambda: None
    if not (_is_file(source) and hasattr(source, "seekable") and source.seekable()):
        return None
    start = source.tell()

    def rewind() -> None:
        source.seek(start)

    return rewind


def pieces(source: TextSource) -> Iterator[bytes]:
    """UTF-8 bytes of `source`, in pieces, none of them empty: in chunked HTTP that would end the body."""
    if isinstance(source, str | bytes):
        yield from filter(None, [_encode(source)])
    elif _is_file(source):
        while piece := source.read(PIECE):
            yield _encode(piece)
    elif isinstance(source, Iterable):
        for part in source:
            if part:
                yield _encode(part)
    else:
        raise TypeError(f"give a file or an iterable of str or bytes, not {type(source).__name__}")


Exported = bytes | str | PathLike[str]
"""An exported session: its bytes, or the path of a file that has them."""


@contextmanager
def open_exported(source: Exported) -> Iterator[tuple[int, Callable[[], TextSource]]]:
    """The size of an exported session in bytes, and what gives them from the start, each time it is called."""
    if isinstance(source, bytes):
        data = source
        yield len(data), lambda: [data]
        return
    with Path(source).open("rb") as file:

        def begin() -> Readable:
            file.seek(0)
            return file

        yield os.fstat(file.fileno()).st_size, begin


async def async_pieces(source: AsyncTextSource) -> AsyncIterator[bytes]:
    """As `pieces`; files and plain iterables are read in a thread so that the event loop goes on."""
    if isinstance(source, AsyncIterable):
        async for piece in source:
            if piece:
                yield _encode(piece)
        return
    inner = pieces(source)
    while (piece := await asyncio.to_thread(next, inner, b"")) != b"":
        yield piece
