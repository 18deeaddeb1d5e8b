"""How many requests may be under way, in all and of one tenant: what is more is refused at once, before anything was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import Overloaded, QuotaExceeded


class Admission:
    """Counts appends and generations. `places` tells those for all; `of_tenant` are for each tenant, 0 for any number.

    Every session costs the same, so a count is exact: what is resident computes, and the rest waits in order.
    """

    def __init__(self, places: Callable[[], int], of_tenant: int) -> None:
        self._places, self._of_tenant = places, of_tenant
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Requests under way."""
        return self._taken.total()

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """A place while this lasts. Raises `QuotaExceeded` or `Overloaded`."""
        if self._of_tenant and self._taken[tenant] >= self._of_tenant:
            raise QuotaExceeded(
                f"{self._of_tenant} of your requests are under way, as many as may be; send this again when one has ended"
            )
        if self.taken >= self._places():
            raise Overloaded("every place in the queue is taken; send this again in a moment")
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
