"""A store, or a pool, that is out of reach for one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from server.errors import StoreUnavailable


def broken(call: Callable[..., Awaitable[Any]], *, done: bool) -> Callable[..., Awaitable[Any]]:
    """Fails as if the store were out of reach, before or after it was done."""

    async def instead(*args: Any, **kwargs: Any) -> Any:
        if done:
            await call(*args, **kwargs)
        raise StoreUnavailable("the store does not answer")

    return instead
