"""The figures for people: a column for each mechanism, so that a memory stands beside its controls."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from models.evaluate.results import IN_NATS, Result


def table(results: Sequence[Result]) -> Table:
    """A line for each task, length and depth, in the order in which they were measured."""
    shown = Table(title="What a session still knows", caption="nll and kl in nats a token, all else in found answers")
    for name in ("task", "tokens", "where"):
        shown.add_column(name, justify="right" if name == "tokens" else "left", no_wrap=True)
    mechanisms = list(dict.fromkeys(one.mechanism for one in results))
    for mechanism in mechanisms:
        largest = max(one.state_bytes for one in results if one.mechanism == mechanism)
        shown.add_column(f"{mechanism.replace('_', ' ')}\n{largest / 2**20:.1f} MiB", justify="right")
    figures = {(one.task, one.length, one.depth, one.mechanism): one for one in results}
    for task, length, depth in dict.fromkeys((one.task, one.length, one.depth) for one in results):
        found = [figures.get((task, length, depth, mechanism)) for mechanism in mechanisms]
        shown.add_row(task, f"{length:,}", depth, *("–" if one is None else _figure(one) for one in found))
    return shown


def _figure(result: Result) -> str:
    return f"{result.accuracy:.3f}" if result.task in IN_NATS else f"{result.accuracy:.0%}"
