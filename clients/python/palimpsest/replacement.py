"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class Replacement:
    """Written under a name of its own beside `path`; takes the place of `path` when it is kept.

    Readable by its owner alone: what is written here may quote a conversation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")

    def write(self, piece: bytes) -> None:
        """Add bytes."""
        self._file.write(piece)

    def keep(self) -> None:
        """Put it in place, on the disk before it has its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def drop(self) -> None:
        """Remove it, unless it was kept."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
