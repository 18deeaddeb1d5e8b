"""The client's own account of what the server acknowledged, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Ledger:
    """Counts tokens beside the server, so that its word is compared with something.

    Every answer says how many tokens it took in. Their sum is where the session must stand: what is missing was lost
    though it had been acknowledged, what is too much was applied more than once.
    """

    position: int = 0
    """Where the session must stand, by what was acknowledged."""
    lost: int = 0
    twice: int = 0

    def acknowledge(self, tokens: int, position: int) -> None:
        """An answer came: `tokens` were taken in, and the session stands at `position`."""
        self.position += tokens
        self.audit(position)

    def audit(self, position: int) -> None:
        """Nothing is under way, so the session must stand exactly where the ledger does.

        A difference is counted once: the ledger goes on from what the session has.
        """
        self.lost += max(0, self.position - position)
        self.twice += max(0, position - self.position)
        self.position = position

    def after_crash(self, position: int, most_under_way: int) -> int:
        """The server was killed while at most `most_under_way` tokens were on their way, not acknowledged.

        All that was acknowledged must be there. Of what was under way any part may be; returns how much is.
        """
        found = position - self.position
        if 0 <= found <= most_under_way:
            return found
        self.audit(position)
        return 0

    def compare(self, uninterrupted: int) -> None:
        """`uninterrupted` is where a session stands that took in the same text in one go, without any crash.

        A second witness for the sum above, which trusts the answers: it is blind only where both fail in the same way.
        The larger count is kept, since both may have seen the same fault.
        """
        self.lost = max(self.lost, uninterrupted - self.position)
        self.twice = max(self.twice, self.position - uninterrupted)
