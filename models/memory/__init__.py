"""The mechanisms there are. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from models.memory import slots, window
from models.memory.base import Mechanism

MECHANISMS: Mapping[str, Mechanism] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (window.MECHANISM, slots.MECHANISM)}
)
