"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta

_STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def size(count: int | None) -> str:
    """Bytes in a binary unit: 24.1 MiB; "?" when nobody knows yet."""
    if count is None:
        return "?"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def span(length: timedelta) -> str:
    """A length of time in its largest unit: 3 h."""
    seconds = int(abs(length.total_seconds()))
    for step, unit in _STEPS:
        if seconds >= step:
            return f"{seconds // step} {unit}"
    return "now"


def relative(moment: datetime | None, now: datetime) -> str:
    """A moment seen from now: "3 h ago", "in 2 d", "never" for None."""
    if moment is None:
        return "never"
    distance = span(moment - now)
    if distance == "now":
        return distance
    return f"in {distance}" if moment > now else f"{distance} ago"
