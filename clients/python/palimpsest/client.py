"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from palimpsest import calls
from palimpsest.bodies import Exported, open_exported, pieces
from palimpsest.calls import Order
from palimpsest.errors import Unavailable
from palimpsest.retry import RetryPolicy
from palimpsest.session import SessionHandle
from palimpsest.stream import EventStream
from palimpsest.telling import Telling
from palimpsest.transport import Transport
from palimpsest.types import Model, Session, SessionPage
from palimpsest.wire import transport_error

DEFAULT_URL = "http://127.0.0.1:8000"


def http_settings(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of either HTTP client. Connecting may take 5 s, an answer `timeout` seconds.

    Raises `ConnectionFailed` for an address that is none.
    """
    try:
        base_url = httpx2.URL(url.rstrip("/"))
    except httpx2.InvalidURL as error:
        raise transport_error(error, url) from None
    return {
        "base_url": base_url,
        "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": httpx2.Timeout(timeout, connect=5.0),
    }


class Client:
    """A connection to a Palimpsest server; use it as a context manager, or `close` it.

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
        self._transport = Transport(httpx2.Client(**http_settings(url, api_key, timeout)), RetryPolicy(retries=retries))
        self.sessions = Sessions(self._transport)

    def models(self) -> tuple[Model, ...]:
        """The models the server offers."""
        return self._transport.run(calls.models())

    def ready(self) -> bool:
        """Whether the server takes requests. Raises `ConnectionFailed` when there is none."""
        try:
            self._transport.run(calls.ready())
        except Unavailable:
            return False
        return True

    def version(self) -> Mapping[str, Any]:
        """What the server says it is."""
        return self._transport.run(calls.version())

    def import_session(
        self, source: Exported, *, ttl_seconds: int | None = None, op_id: str | None = None
    ) -> SessionHandle:
        """A new session from what `export` made: its bytes, or the path of a file that has them.

        The server checks all of it before it stores any. Raises `InvalidRequest` when it refuses.
        """
        with open_exported(source) as (size, body):
            session = self._transport.run(calls.import_session(size, ttl_seconds, op_id), lambda: pieces(body()))
        return SessionHandle(self._transport, session)

    def resume(self, generation_id: str, after: int = -1) -> EventStream:
        """The events of a generation behind event number `after` (-1: all of them), and on if it was stopped or broke off.

        Raises `NotFound` for one that left no trace, was too long ago, or whose session is gone.
        """
        call = calls.resume(generation_id, after)
        return EventStream(self._transport, call, Telling(generation_id, after))

    def close(self) -> None:
        """Let go of all connections."""
        self._transport.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sessions:
    """The sessions of this API key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        *,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        model: str | None = None,
        memory: str | None = None,
        op_id: str | None = None,
    ) -> SessionHandle:
        """A new session. `system` is its first message; without `ttl_seconds` it stays until deleted.

        With the same `op_id` it is made once, however often it is asked for.
        """
        call = calls.create_session(system, metadata, ttl_seconds, model, memory, op_id)
        return SessionHandle(self._transport, self._transport.run(call))

    def get(self, session_id: str) -> SessionHandle:
        """A session that exists. Raises `NotFound`."""
        return SessionHandle(self._transport, self._transport.run(calls.get_session(session_id)))

    def list(self, *, limit: int = 20, after: str | None = None, order: Order = "desc") -> SessionPage:
        """One page of sessions by creation time; `limit` is 1 to 100."""
        return self._transport.run(calls.list_sessions(limit, after, order))

    def all(self, *, order: Order = "desc") -> Iterator[Session]:
        """Every session, page after page."""
        after: str | None = None
        while True:
            page = self.list(limit=100, after=after, order=order)
            yield from page.data
            if not (page.has_more and page.data):
                return
            after = page.data[-1].id

    def update(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
    ) -> Session:
        """Replace the metadata or set the lifetime. Raises `PreconditionFailed` when `if_match` is stale."""
        return self._transport.run(calls.update_session(session_id, metadata, ttl_seconds, if_match))

    def delete(self, session_id: str, *, if_match: str | None = None) -> None:
        """Remove the session and everything stored of it. Raises `PreconditionFailed` when `if_match` is stale."""
        self._transport.run(calls.delete_session(session_id, if_match))
