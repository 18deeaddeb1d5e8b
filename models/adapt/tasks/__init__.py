"""The tasks there are. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from models.adapt.tasks.base import Task
from models.adapt.tasks.copy import Copy
from models.adapt.tasks.mqar import Mqar
from models.adapt.tasks.passkey import Passkey
from models.adapt.tasks.rewrite import Rewrite
from models.adapt.tasks.sorting import Sorting

TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {"passkey": Passkey, "mqar": Mqar, "copy": Copy, "rewrite": Rewrite, "sorting": Sorting}
)
