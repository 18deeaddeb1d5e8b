"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from palimpsest import calls
from palimpsest.aio.session import AsyncSessionHandle
from palimpsest.aio.transport import AsyncTransport
from palimpsest.calls import Order
from palimpsest.client import DEFAULT_URL, http_settings
from palimpsest.errors import Unavailable
from palimpsest.retry import RetryPolicy
from palimpsest.types import Model, Session, SessionPage


class AsyncClient:
    """A connection to a Palimpsest server; use it with `async with`, or `close` it.

    `timeout` is how many seconds an answer may be silent, `retries` how often a request that is safe to
    repeat is sent again. Methods raise the classes of `palimpsest.errors`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        self._transport = AsyncTransport(
            httpx2.AsyncClient(**http_settings(url, api_key, timeout)), RetryPolicy(retries=retries)
        )
        self.sessions = AsyncSessions(self._transport)

    async def models(self) -> tuple[Model, ...]:
        """The models the server offers."""
        return await self._transport.run(calls.models())

    async def ready(self) -> bool:
        """Whether the server takes requests. Raises `ConnectionFailed` when there is none."""
        try:
            await self._transport.run(calls.ready())
        except Unavailable:
            return False
        return True

    async def version(self) -> Mapping[str, Any]:
        """What the server says it is."""
        return await self._transport.run(calls.version())

    async def close(self) -> None:
        """Let go of all connections."""
        await self._transport.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncSessions:
    """The sessions of this API key."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        *,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        model: str | None = None,
        memory: str | None = None,
    ) -> AsyncSessionHandle:
        """A new session. `system` is its first message; without `ttl_seconds` it stays until deleted."""
        session = await self._transport.run(calls.create_session(system, metadata, ttl_seconds, model, memory))
        return AsyncSessionHandle(self._transport, session)

    async def get(self, session_id: str) -> AsyncSessionHandle:
        """A session that exists. Raises `NotFound`."""
        return AsyncSessionHandle(self._transport, await self._transport.run(calls.get_session(session_id)))

    async def list(self, *, limit: int = 20, after: str | None = None, order: Order = "desc") -> SessionPage:
        """One page of sessions by creation time; `limit` is 1 to 100."""
        return await self._transport.run(calls.list_sessions(limit, after, order))

    async def all(self, *, order: Order = "desc") -> AsyncIterator[Session]:
        """Every session, page after page."""
        after: str | None = None
        while True:
            page = await self.list(limit=100, after=after, order=order)
            for session in page.data:
                yield session
            if not (page.has_more and page.data):
                return
            after = page.data[-1].id

    async def update(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
    ) -> Session:
        """Replace the metadata or set the lifetime. Raises `PreconditionFailed` when `if_match` is stale."""
        given = {"metadata": None if metadata is None else dict(metadata), "ttl_seconds": ttl_seconds}
        changes = {name: value for name, value in given.items() if value is not None}
        return await self._transport.run(calls.update_session(session_id, changes, if_match))

    async def delete(self, session_id: str) -> None:
        """Remove the session and everything stored of it."""
        await self._transport.run(calls.delete_session(session_id))
