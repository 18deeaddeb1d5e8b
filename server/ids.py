"""Names of things: a prefix that tells the kind, and 128 random bits."""

from __future__ import annotations

import re
import secrets

_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """A fresh id such as `sess_0f…` (32 hex digits)."""
    return f"{prefix}_{secrets.token_hex(16)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` could have come from `new_id(prefix)`."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None
