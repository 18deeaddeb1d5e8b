"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from palimpsest import calls
from palimpsest.aio.session import AsyncSessionHandle
from palimpsest.aio.stream import AsyncEventStream
from palimpsest.aio.transport import AsyncTransport
from palimpsest.bodies import Exported, async_pieces, open_exported
from palimpsest.calls import Order
from palimpsest.client import DEFAULT_URL, http_settings
from palimpsest.errors import Unavailable
from palimpsest.retry import RetryPolicy
from palimpsest.telling import Telling
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

    async def import_session(
        self, source: Exported, *, ttl_seconds: int | None = None, op_id: str | None = None
    ) -> AsyncSessionHandle:
        """A new session from what `export` made: its bytes, or the path of a file that has them.

        The server checks all of it before it stores any. Raises `InvalidRequest` when it refuses.
        """
        with open_exported(source) as (size, body):
            session = await self._transport.run(
                calls.import_session(size, ttl_seconds, op_id), lambda: async_pieces(body())
            )
        return AsyncSessionHandle(self._transport, session)

    def resume(self, generation_id: str, after: int = -1) -> AsyncEventStream:
        """The events of a generation behind event number `after` (-1: all of them), and on if it was stopped or broke off.

        Raises `NotFound` for one that left no trace, was too long ago, or whose session is gone.
        """
        call = calls.resume(generation_id, after)
        return AsyncEventStream(self._transport, call, Telling(generation_id, after))

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
        op_id: str | None = None,
    ) -> AsyncSessionHandle:
        """A new session. `system` is its first message; without `ttl_seconds` it stays until deleted.

        With the same `op_id` it is made once, however often it is asked for.
        """
        session = await self._transport.run(calls.create_session(system, metadata, ttl_seconds, model, memory, op_id))
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
        return await self._transport.run(calls.update_session(session_id, metadata, ttl_seconds, if_match))

    async def delete(self, session_id: str, *, if_match: str | None = None) -> None:
        """Remove the session and everything stored of it. Raises `PreconditionFailed` when `if_match` is stale."""
        await self._transport.run(calls.delete_session(session_id, if_match))
