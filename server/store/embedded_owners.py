"""Which owners of leases are alive: each holds a file lock, which the kernel lets go of when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from server.store.blobs import make_private_folder

_SUFFIX = ".lock"


class OwnerLocks:
    """The locks of this process, and a look at those of others. Every method blocks; failures are `OSError`.

    A process that stands still keeps its locks: then only the time of its lease tells. `hold`, `is_dead` and `sweep` are called
    inside a write transaction of the database, so that no two processes look at one file at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def create(self) -> None:
        """Make the folder if it is missing."""
        make_private_folder(self._folder)

    def hold(self, owner: str) -> None:
        """Show that `owner` lives, until `close` or the end of this process."""
        if owner in self._held:
            return
        descriptor = os.open(self._path(owner), os.O_RDWR | os.O_CREAT, 0o600)
        # Shared, as the parts of one process may have a store each under the same name.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._held[owner] = descriptor

    def is_dead(self, owner: str) -> bool:
        """Whether nobody shows that `owner` lives."""
        return _is_free(self._path(owner))

    def sweep(self) -> None:
        """Remove the files of the dead."""
        for path in self._folder.glob("*" + _SUFFIX):
            if _is_free(path):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of every lock: the owners that were shown here are as dead as if the process had ended."""
        while self._held:
            _, descriptor = self._held.popitem()
            os.close(descriptor)

    def _path(self, owner: str) -> Path:
        return self._folder / (hashlib.sha256(owner.encode(errors="surrogatepass")).hexdigest()[:32] + _SUFFIX)


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)  # gives the lock back
    return True
