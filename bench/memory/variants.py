"""The mechanisms and variants that are compared: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A mechanism with settings of its own. `published` is what its paper reports, to be read beside our figures.

    `closed`: its gates are shut until an adapter has been trained, so that it must do exactly what `window` does.
    """

    mechanism: str
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    closed: bool = False


VARIANTS = (
    Variant("window", published="4M tokens without loss of fluency, remembers the window (2309.17453)"),
    Variant("transformer_xl", published="PG19 perplexity 36.3 (1901.02860, as in 1911.05507)"),
    Variant("transformer_xl", "with sinks", {"sinks": 4}),
    Variant("compressive", "mean", published="PG19 perplexity 33.6, enwik8 0.97 bits (1911.05507)"),
    Variant("compressive", "max", {"compression": "max"}),
    Variant("memorizing", "one softmax", published="Arxiv perplexity 2.26 with 183M numbers (2404.07143)"),
    Variant("slots", published="ours"),
    Variant(
        "infini",
        "linear",
        {"rule": "linear"},
        published="passkey 96/94/100 at 1M after 400 steps; zero-shot 6 to 14 (2404.07143)",
        closed=True,
    ),
    Variant("infini", "delta", {"rule": "delta"}, published="passkey 100/100/100 at 1M (2404.07143)", closed=True),
    Variant("infini", "gated delta", {"rule": "gated_delta"}, published="ours, after 2412.06464", closed=True),
    Variant("feedback", published="passkey 100 to 260K (2404.09173)", closed=True),
    Variant(
        "continuous", published="sorting holds to 16K where Transformer-XL falls (a figure; 2109.00301)", closed=True
    ),
    Variant("continuous", "sticky", {"sticky": True}, published="as above", closed=True),
)
