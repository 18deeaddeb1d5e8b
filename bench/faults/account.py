"""What came of a fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Verdict:
    """What is wrong with a session: operations lost or applied twice, and texts that go on otherwise than they should."""

    lost: int = 0
    twice: int = 0
    wrong: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not (self.lost or self.twice or self.wrong or self.complaints)


@dataclass
class Account:
    """One fault, at all of its points."""

    name: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Every point passed, and there was one."""
        return bool(self.passed) and not self.failed and not self.complaints

    def settle(self, point: str, *verdicts: Verdict) -> None:
        """Enter what came of one point."""
        for verdict in verdicts:
            self.lost, self.twice, self.wrong = (
                self.lost + verdict.lost,
                self.twice + verdict.twice,
                self.wrong + verdict.wrong,
            )
            self.complaints += [f"{point}: {complaint}" for complaint in verdict.complaints]
        (self.passed if all(verdict.clean for verdict in verdicts) else self.failed).append(point)

    def check(self, point: str, held: bool, otherwise: str) -> None:
        """Enter a point that is about something else than a session's content."""
        self.settle(point, Verdict() if held else Verdict(complaints=[otherwise]))

    def broke(self, complaint: str) -> None:
        """The fault could not be played to its end."""
        self.complaints.append(complaint)


def summary(accounts: Sequence[Account]) -> dict[str, int]:
    """The figures of a whole run."""
    return {
        "faults": len(accounts),
        "passed": sum(account.clean for account in accounts),
        "acknowledged_lost": sum(account.lost for account in accounts),
        "applied_twice": sum(account.twice for account in accounts),
        "wrong_continuations": sum(account.wrong for account in accounts),
    }
