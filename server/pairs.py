"""What a server offers: pairs of a model and a memory, as they are named and as they are set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Pair(NamedTuple):
    """A model and a memory by their names. A session is of one pair for life."""

    model: str
    memory: str

    def __str__(self) -> str:
        return f"{self.memory} of {self.model}"


@dataclass(frozen=True)
class PairSettings:
    """One pair with all that is set for it. `options` are fields of the memory's configuration."""

    pair: Pair
    options: Mapping[str, Any]
    calibration: Path | None
    adapter: Path | None


class OfferSettings(BaseModel):
    """An entry of `PALIMPSEST_OFFERS`. Without `model` it is of the default model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)] | None = None
    memory: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    calibration: Path | None = None
    adapter: Path | None = None

    @field_validator("calibration", "adapter")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return absolute(value)


def offer_entries(value: object) -> object:
    """Offers as JSON text or as a list whose entries may be JSON text, or the name of a memory alone, as plain objects.

    Raises `ValueError`.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list | tuple):
        raise ValueError('must be a JSON list such as ["window", {"memory": "slots", "options": {"slots": 512}}]')
    return [_entry(entry) for entry in value]


def _entry(entry: object) -> object:
    if not isinstance(entry, str):
        return entry
    return _parsed(entry) if entry.lstrip().startswith("{") else {"memory": entry.strip()}


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(
            'must be JSON, such as ["window", {"memory": "slots", "options": {"slots": 512}}]; one entry may be a name alone'
        ) from None


def absolute(path: Path | None) -> Path | None:
    """The same path wherever a worker is started."""
    return None if path is None else path.expanduser().absolute()
