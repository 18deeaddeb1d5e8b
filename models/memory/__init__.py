"""The mechanisms there are. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from models.memory import compressive, continuous, feedback, infini, memorizing, slots, transformer_xl, window
from models.memory.base import Mechanism

MECHANISMS: Mapping[str, Mechanism] = MappingProxyType(
    {
        mechanism.name: mechanism
        for mechanism in (
            window.MECHANISM,
            transformer_xl.MECHANISM,
            compressive.MECHANISM,
            memorizing.MECHANISM,
            infini.MECHANISM,
            feedback.MECHANISM,
            continuous.MECHANISM,
            slots.MECHANISM,
        )
    }
)
