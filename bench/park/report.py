"""The figures of a run: as JSON, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.park.cycle import Parked
from bench.park.reread import Reread

STEPS = ("encode", "seal", "journal", "save", "load", "restore", "first_token", "resume", "fork")


@dataclass(frozen=True)
class Compared:
    """The same text with llama.cpp. Names end in their unit.

    `reread_ratio` is how often a session is resumed, to its first token, while llama.cpp reads the text again, to its first.
    Where `reread_complete` is False it had read only `reread_tokens` when its time was over: the ratio is at least this.
    State, save, load and resume are of its own saved state at `reread_tokens`.
    """

    reread_tokens: int
    reread_complete: bool
    reread_s: float
    reread_ratio: float
    state_bytes: int
    save_ms: float
    load_ms: float
    resume_ms: float


@dataclass(frozen=True)
class Row:
    """One length of history; medians in milliseconds. `redis_bytes` are all keys of the session, both snapshots included.
    `own_reread_s` follows from the speed of this server's own reading behind that history."""

    tokens: int
    cycles: int
    state_bytes: int
    sealed_bytes: int
    redis_bytes: int
    own_tokens_per_second: float
    own_reread_s: float
    llama: Compared | None
    encode_ms: float
    seal_ms: float
    journal_ms: float
    save_ms: float
    load_ms: float
    restore_ms: float
    first_token_ms: float
    resume_ms: float
    fork_ms: float


def row(tokens: int, parked: Parked, redis_bytes: int, own_speed: float, llama: Reread | None) -> Row:
    """The figures of one length; `own_speed` in tokens a second."""
    steps = {f"{step}_ms": parked.median(step) for step in STEPS}
    return Row(
        tokens=tokens,
        cycles=len(parked.cycles),
        state_bytes=parked.state_bytes,
        sealed_bytes=parked.sealed_bytes,
        redis_bytes=redis_bytes,
        own_tokens_per_second=round(own_speed, 1),
        own_reread_s=round(tokens / own_speed, 2),
        llama=_compared(tokens, llama, steps["resume_ms"]) if llama else None,
        **steps,
    )


def _compared(tokens: int, llama: Reread, resume_ms: float) -> Compared:
    reread = llama.seconds + llama.first_token
    return Compared(
        reread_tokens=llama.tokens,
        reread_complete=llama.tokens == tokens,
        reread_s=round(reread, 2),
        reread_ratio=round(reread * 1000 / resume_ms, 1),
        state_bytes=llama.state_bytes,
        save_ms=round(llama.save * 1000, 1),
        load_ms=round(llama.load * 1000, 1),
        resume_ms=round((llama.load + llama.first_token_loaded) * 1000, 1),
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows for people, a column each."""
    shown = Table(title="Parked in Redis, resumed, and the same text read again")
    shown.add_column("tokens of history")
    for one in rows:
        shown.add_column(f"{one.tokens:,}", justify="right")
    for name in ("state", "sealed", "redis"):
        sizes = (getattr(one, f"{name}_bytes") / 2**20 for one in rows)
        shown.add_row(f"{'in ' if name == 'redis' else ''}{name}, MiB", *(f"{size:.1f}" for size in sizes))
    for step in STEPS:
        shown.add_row(f"{step.replace('_', ' ')}, ms", *(f"{getattr(one, step + '_ms'):,.1f}" for one in rows))
    shown.add_section()
    shown.add_row("read again, s", *(f"{one.own_reread_s:,.1f}" for one in rows))
    for name, *cells in zip(_COMPARED, *(_cells(one.llama) for one in rows), strict=True):
        shown.add_row(name, *cells)
    return shown


_COMPARED = (
    "llama.cpp: tokens read",
    "llama.cpp: read again, s",
    "ratio to resume",
    "its state, MiB",
    "its resume, ms",
)


def _cells(llama: Compared | None) -> list[str]:
    """What `_COMPARED` names. State and resume are of as many tokens as were read."""
    if llama is None:
        return ["-"] * len(_COMPARED)
    least = "" if llama.reread_complete else "> "
    return [
        f"{llama.reread_tokens:,}",
        f"{least}{llama.reread_s:,.1f}",
        f"{least}{llama.reread_ratio:,.0f}",
        f"{llama.state_bytes / 2**20:,.0f}",
        f"{llama.resume_ms:,.0f}",
    ]
