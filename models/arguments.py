"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models.errors import ModelsError


def settings(text: str) -> dict[str, Any]:
    """A memory's settings, of a JSON object. Raises `argparse.ArgumentTypeError`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('settings are a JSON object, such as {"rule": "delta"}')
    return found


def read_book(path: Path) -> str:
    """A long plain text. Raises `ModelsError` when it is not in UTF-8, and `OSError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelsError(f"the book {path} is not in UTF-8: {error.reason} at byte {error.start:,}") from None
