"""What went wrong below the embedded store, said so that somebody can act on it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from server.errors import StoreUnavailable

_FULL = "The disk under the store's data folder is full; free space there. Nothing was written."
_READ_ONLY = "The store's data folder cannot be written; give the server's user permission, or mount it writable."
_CANNOT_OPEN = "The store's files cannot be opened; check that the data folder exists and belongs to the server's user."
_BUSY = "Another process kept the store's database locked for too long; try again, and look for a stuck process."
_DAMAGED = "The store's database is damaged; stop the server and restore the data folder from a backup."
_BROKEN = "Reading or writing the store's data folder failed; check the disk, and limits on the size of files."

_DATABASE_TEXTS: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, _FULL),
    (apsw.ReadOnlyError, _READ_ONLY),
    (apsw.PermissionsError, _READ_ONLY),
    (apsw.CantOpenError, _CANNOT_OPEN),
    (apsw.BusyError, _BUSY),
    (apsw.LockedError, _BUSY),
    (apsw.ProtocolError, _BUSY),
    (apsw.CorruptError, _DAMAGED),
    (apsw.NotADBError, _DAMAGED),
    (apsw.IOError, _BROKEN),
)

_SYSTEM_TEXTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.ENOENT: _CANNOT_OPEN,
    errno.ENOTDIR: _CANNOT_OPEN,
    errno.EEXIST: _CANNOT_OPEN,
}


@contextmanager
def translated() -> Iterator[None]:
    """Turn failures of the disk and of SQLite into `StoreUnavailable`. Mistakes in our own SQL pass
    unchanged."""
    try:
        yield
    except apsw.Error as error:
        for kind, text in _DATABASE_TEXTS:
            if isinstance(error, kind):
                raise StoreUnavailable(text) from error
        raise
    except OSError as error:
        raise StoreUnavailable(_SYSTEM_TEXTS.get(error.errno or 0, _BROKEN)) from error
