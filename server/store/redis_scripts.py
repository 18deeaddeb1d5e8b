"""The scripts in the folder `lua`, each behind the prelude."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_READING = frozenset({"read", "load", "operation", "generation", "page", "due", "time"})


@dataclass(frozen=True)
class Script:
    """A script and its name in Redis's cache."""

    source: str
    sha: str
    reads: bool
    """Whether it writes nothing, so that it may be sent again."""


@cache
def script(name: str) -> Script:
    """The script in `lua/<name>.lua`."""
    folder = files("server.store") / "lua"
    source = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("prelude", name))
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(), name in _READING)
