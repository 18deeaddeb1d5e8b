"""How much of a worker each tenant has had, so that what comes next goes to the one who had least.

A virtual token counter a tenant, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: however
many sessions a tenant sends, tenants who always have work get equal parts.
"""

from __future__ import annotations

from collections.abc import Iterable

_SAMPLED = 3.0
"""What a sampled token counts, if one that is read counts 1: in a step of eight sessions it takes about as long as reading three
(bench/results/engine.json)."""


def cost(tokens: int, generating: bool) -> float:
    """What a session's part of a step counts: so many tokens that are fed, and for one that generates a sampled one."""
    return max(tokens, _SAMPLED) if generating else float(tokens)


class Shares:
    """Counters by tenant. Pure: no clock, no I/O."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._present: set[str] = set()
        self._floor = 0.0

    def present(self, tenants: Iterable[str]) -> None:
        """These have work now, and nobody else. Who had none before begins with as much as the one who had least of the others:
        a time without work is no credit, and no debt either where all have gone on."""
        now = {*tenants}
        staying = [self._had[tenant] for tenant in now & self._present]
        self._floor = max(self._floor, min(staying, default=self._floor))
        for tenant in now - self._present:
            self._had[tenant] = max(self._had.get(tenant, 0.0), self._floor)
        self._present = now
        # Whoever has had no more than the floor would begin with it anyway: there is nothing to remember.
        self._had = {tenant: had for tenant, had in self._had.items() if tenant in now or had > self._floor}

    def charge(self, tenant: str, cost: float) -> None:
        """So much was done for a tenant that is present."""
        self._had[tenant] += cost

    def had(self, tenant: str) -> float:
        """What was done for a tenant, in read tokens; that of the least for one that is not known."""
        return self._had.get(tenant, self._floor)
