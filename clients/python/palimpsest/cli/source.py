"""A text to ingest: checked whole before any of it is sent, then cut the same way on every run."""

from __future__ import annotations

import codecs
import hashlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE = 16 * 1024
"""Characters of one append."""

_BLOCK = 1024 * 1024


class SourceError(Exception):
    """A text that cannot be read; the message says where it fails."""


@dataclass(frozen=True)
class Source:
    """A checked text. `digest` is the SHA-256 of its bytes, in hex."""

    name: str
    file: BinaryIO
    digest: str
    characters: int

    def op_id(self, offset: int) -> str:
        """The operation that takes in the piece at `offset`: the same on every run, so it is applied once."""
        return f"ingest-{self.digest[:16]}-{offset}"

    def pieces(self, start: int) -> Iterator[tuple[int, str]]:
        """Offsets and pieces from `start`, in characters, a multiple of `PIECE`."""
        self.file.seek(0)
        # newline="" keeps line ends as they are; detached, the wrapper does not close the file.
        reader = io.TextIOWrapper(self.file, encoding="utf-8", newline="")
        try:
            offset = 0
            while piece := reader.read(PIECE):
                if offset >= start:
                    yield offset, piece
                offset += len(piece)
        except UnicodeDecodeError:
            raise SourceError(f"{self.name} was changed while it was being read") from None
        finally:
            reader.detach()

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def open_source(name: str) -> Source:
    """Open and check a file, or standard input for "-". Raises `SourceError` if it is not UTF-8 text."""
    try:
        file = _spooled() if name == "-" else Path(name).open("rb")  # noqa: SIM115 (Source.close)
    except OSError as error:
        raise SourceError(f"cannot read {name}: {error.strerror}") from None
    shown = "standard input" if name == "-" else name
    try:
        digest, characters = _check(file, shown)
    except BaseException:
        file.close()
        raise
    return Source(shown, file, digest, characters)


def _spooled() -> BinaryIO:
    """Standard input in a temporary file, since it is read twice."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (Source.close)
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.seek(0)
    return file


def _check(file: BinaryIO, name: str) -> tuple[str, int]:
    """Digest and length in characters."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    characters = read = 0
    try:
        while block := file.read(_BLOCK):
            pending = len(decoder.getstate()[0])
            digest.update(block)
            characters += len(decoder.decode(block))
            read += len(block)
        pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # The decoder counts from the bytes it had kept of the block before.
        where = read - pending + error.start
        raise SourceError(
            f"{name} is not UTF-8 at byte {where:,}: {error.reason}; nothing of it was sent. "
            "Convert it first, for example with `iconv -t UTF-8`"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read {name}: {error.strerror}") from None
    return digest.hexdigest(), characters
