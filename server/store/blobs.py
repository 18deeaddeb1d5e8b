"""Snapshots as files. A file is written once, under a name never used before, and is whole before it has that
name."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from server.errors import StateRefused

_SUFFIX = ".snapshot"
_PARTIAL = ".partial"


class SnapshotFolder:
    """One folder of snapshot files. Every method blocks; failures are `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Make the folder if it is missing, readable by its owner only."""
        make_private_folder(self._path)

    def write(self, session_id: str, content: bytes) -> str:
        """Put `content` on the disk for good and return the name of its file."""
        name = f"{session_id}.{secrets.token_hex(8)}{_SUFFIX}"
        partial = self._path / (name + _PARTIAL)
        try:
            with open(partial, "xb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(self._path)
        return name

    def read(self, name: str, size: int) -> bytes:
        """The content of a file of `size` bytes. Raises `FileNotFoundError`, and `StateRefused` for another size or bad sectors."""
        try:
            content = (self._path / name).read_bytes()
        except OSError as error:
            if error.errno == errno.EIO:
                raise StateRefused(f"The snapshot file {name} cannot be read; check the disk.") from error
            raise
        if len(content) != size:
            raise StateRefused(
                f"The snapshot file {name} has {len(content)} bytes instead of {size}. "
                "Restore the data folder from a backup, or delete the session."
            )
        return content

    def has(self, name: str) -> bool:
        """Whether a whole file has this name."""
        return (self._path / name).is_file()

    def remove(self, name: str) -> None:
        """Delete one file; one that is gone already is fine."""
        (self._path / name).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Sequence[str]:
        """Names of files last changed more than `seconds` ago by the wall clock, half-written ones
        included."""
        limit = time.time() - seconds
        with os.scandir(self._path) as files:
            return [file.name for file in files if _changed_before(file, limit)]


def make_private_folder(path: Path) -> None:
    """Make a folder, with mode 0700 and durably, unless it exists."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make names that were added to a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _changed_before(file: os.DirEntry[str], limit: float) -> bool:
    try:
        return file.name.endswith((_SUFFIX, _SUFFIX + _PARTIAL)) and file.stat().st_mtime < limit
    except FileNotFoundError:  # its writer, or another sweep, was faster
        return False
