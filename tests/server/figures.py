"""A page of figures, read as Prometheus reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Page:
    """What `/metrics` says."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        names = [family.name for family in self.families]
        assert len(names) == len(set(names)), "one family a name, whoever measured it"
        for sample in self.samples:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", sample.name), "no colons: they are for rules"

    @property
    def samples(self) -> Iterable[Sample]:
        """All of them."""
        return (sample for family in self.families for sample in family.samples)

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, among others."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"nothing is called {name} with {labels}"
        return sum(found)
