"""The interface spoken plainly: one request, one answer, nothing repeated behind anybody's back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import httpx2

from server.errors import FAMILIES

Fields = Mapping[str, Any]
RETRYABLE = frozenset({409, 429, 503})
"""Status codes that ask to try again."""
_ATTEMPTS = 10
STATUS = {family.default_code: family.status for family in FAMILIES.values()}
"""What the status of an error would have been, for one that came within a stream."""


class Refused(Exception):
    """The server said no."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.retry_after = status, code, retry_after


class NoAnswer(Exception):
    """The connection failed, or the answer broke off, or took too long."""


class HasUrl(Protocol):
    """Anything that is reached by HTTP, at an address that changes when it is started again."""

    @property
    def url(self) -> str:
        """Without a slash at its end."""


@dataclass(frozen=True)
class Answer:
    """The fields of an answer and the session's ETag, if it came with one."""

    fields: Fields
    etag: str | None


@dataclass(frozen=True)
class Event:
    """One event of a generation. `number` is the second half of its id."""

    kind: str
    generation_id: str
    number: int
    fields: Fields


class Wire:
    """Requests to one server. `patience` is how many seconds an answer may be silent.

    Methods raise `Refused` and `NoAnswer`. Use it as a context manager.
    """

    def __init__(self, server: HasUrl, *, patience: float = 20.0) -> None:
        self._server = server
        self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(patience, connect=2.0), trust_env=False)

    async def create(self, fields: Fields | None = None, *, op_id: str | None = None) -> str:
        """The id of a new session."""
        answer = await self.ask("POST", "/v1/sessions", fields or {}, op_id=op_id)
        return str(answer.fields["id"])

    async def session(self, session_id: str) -> Answer:
        """The session as it is."""
        return await self.ask("GET", f"/v1/sessions/{session_id}")

    async def memory(self, session_id: str) -> Fields:
        """What its memory holds."""
        return (await self.ask("GET", f"/v1/sessions/{session_id}/memory")).fields

    async def ask(
        self,
        method: str,
        path: str,
        fields: Fields | None = None,
        *,
        body: bytes | None = None,
        op_id: str | None = None,
        if_match: str | None = None,
    ) -> Answer:
        """One request with a JSON body, or with plain text if `body` is given."""
        headers = _headers(op_id, if_match)
        if body is not None:
            headers["content-type"] = "text/plain; charset=utf-8"
        with _told_apart():
            response = await self._http.request(
                method, self._server.url + path, headers=headers, json=fields, content=body
            )
        _raise_refusal(response)
        found: dict[str, Any] = response.json()
        return Answer(found, response.headers.get("etag"))

    @asynccontextmanager
    async def stream(self, session_id: str, fields: Fields, op_id: str) -> AsyncIterator[AsyncGenerator[Event, None]]:
        """Generate; the events as they come."""
        path = f"/v1/sessions/{session_id}/generate"
        async with self._events("POST", path, {**fields, "stream": True}, _headers(op_id, None)) as events:
            yield events

    @asynccontextmanager
    async def resume(self, generation_id: str, after: int) -> AsyncIterator[AsyncGenerator[Event, None]]:
        """The events of a generation behind number `after`."""
        headers = {"last-event-id": f"{generation_id}:{after}"}
        async with self._events("GET", f"/v1/generations/{generation_id}/events", None, headers) as events:
            yield events

    @asynccontextmanager
    async def _events(
        self, method: str, path: str, fields: Fields | None, headers: dict[str, str]
    ) -> AsyncIterator[AsyncGenerator[Event, None]]:
        with _told_apart():
            async with self._http.stream(method, self._server.url + path, json=fields, headers=headers) as response:
                if not response.is_success:
                    await response.aread()
                    _raise_refusal(response)
                events = _read(response)
                try:
                    yield events
                finally:
                    await events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()


class PatientWire(Wire):
    """One that asks again when the server says to: for a server that nothing befalls, on a machine that may be slow.

    What changes a session needs an `op_id`, so that it is done once.
    """

    async def ask(
        self,
        method: str,
        path: str,
        fields: Fields | None = None,
        *,
        body: bytes | None = None,
        op_id: str | None = None,
        if_match: str | None = None,
    ) -> Answer:
        """See `Wire.ask`."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await super().ask(method, path, fields, body=body, op_id=op_id, if_match=if_match)
            except Refused as refusal:
                if refusal.status not in RETRYABLE:
                    raise
                await asyncio.sleep(refusal.retry_after or 0.5)
        return await super().ask(method, path, fields, body=body, op_id=op_id, if_match=if_match)


async def _read(response: httpx2.Response) -> AsyncGenerator[Event, None]:
    async for event in httpx2.EventSource(response):
        fields = json.loads(event.data)
        if event.event == "error":
            error = fields["error"]
            # There is no header within a stream: try again when you like.
            raise Refused(STATUS.get(error["code"], 503), error["code"], error["message"], 0.0)
        generation_id, _, number = event.id.rpartition(":")
        yield Event(event.event, generation_id, int(number), fields)


def _headers(op_id: str | None, if_match: str | None) -> dict[str, str]:
    given = {"idempotency-key": op_id, "if-match": if_match}
    return {name: value for name, value in given.items() if value is not None}


def _raise_refusal(response: httpx2.Response) -> None:
    if response.is_success:
        return
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "none", response.text[:200]
    retry_after = response.headers.get("retry-after")
    raise Refused(response.status_code, code, message, None if retry_after is None else float(retry_after))


@contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except (httpx2.TransportError, httpx2.SSEError) as error:
        raise NoAnswer(f"{type(error).__name__}: {error}") from error
