"""What the command remembers between runs: how far an ingest came, and the session last talked to.

One JSON file a fact, so that two runs at once never overwrite each other's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def state_folder() -> Path:
    """`$XDG_STATE_HOME/palimpsest`, by default `~/.local/state/palimpsest`."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "palimpsest"


def _file(kind: str, *key: str) -> Path:
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]
    return state_folder() / f"{kind}-{digest}.json"


def _read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing when it is missing or damaged: then the server's own record decides."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(fields, file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class IngestProgress:
    """How far one text came in one session: `offset` in characters, all of them acknowledged."""

    server: str
    session_id: str
    digest: str

    def _path(self) -> Path:
        return _file("ingest", self.server, self.session_id, self.digest)

    def load(self) -> int:
        """Characters acknowledged so far."""
        offset = _read(self._path()).get("offset")
        return offset if isinstance(offset, int) and offset > 0 else 0

    def save(self, offset: int) -> None:
        """Note that everything before `offset` is acknowledged."""
        _write(
            self._path(),
            {
                "server": self.server,
                "session": self.session_id,
                "sha256": self.digest,
                "offset": offset,
            },
        )


def last_session(server: str) -> str | None:
    """The session last talked to on a server."""
    session_id = _read(_file("last", server)).get("session")
    return session_id if isinstance(session_id, str) else None


def save_last_session(server: str, session_id: str) -> None:
    """Remember the session last talked to."""
    _write(_file("last", server), {"server": server, "session": session_id})
