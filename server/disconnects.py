"""Notices that a client has gone away, and lets go of what was done for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import Receive


class ConnectionOver(Exception):
    """Base of the ways in which a connection ends."""


class ClientGone(ConnectionOver):
    """The client closed the connection."""


class SlowReader(ConnectionOver):
    """The client took nothing of what was sent for too long."""


@asynccontextmanager
async def cancelled_when_gone(receive: Receive) -> AsyncGenerator[None, None]:
    """Cancel the block and raise `ClientGone` when the client disconnects.

    The request's body must have been read.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(raise_when_gone(receive))
            yield
            watcher.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def raise_when_gone(receive: Receive) -> None:
    """Wait until the client disconnects, then raise `ClientGone`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone
