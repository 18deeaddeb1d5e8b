"""Sending requests over HTTP, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import httpx2

from palimpsest.calls import Call
from palimpsest.errors import PalimpsestError
from palimpsest.retry import RetryPolicy
from palimpsest.transport import TRANSPORT_ERRORS
from palimpsest.wire import response_error, transport_error

T = TypeVar("T")


class AsyncTransport:
    """One HTTP connection pool with the retry policy around it."""

    def __init__(self, http: httpx2.AsyncClient, policy: RetryPolicy) -> None:
        self.http = http
        self._policy = policy

    async def run(self, call: Call[T], body: Callable[[], AsyncIterable[bytes]] | None = None) -> T:
        """Send and read the answer, again if that is safe. `body` opens a streamed body for each attempt."""
        attempts = self._policy.attempts(call.repeat)
        while True:
            try:
                async with self._open(call, body() if body else None) as response:
                    await response.aread()
                return call.read(response)
            except PalimpsestError as error:
                await asyncio.sleep(attempts.after(error))

    @asynccontextmanager
    async def stream(self, call: Call[None]) -> AsyncIterator[httpx2.Response]:
        """Send, and hold the answer open. Repeats only until the answer's head has come."""
        attempts = self._policy.attempts(call.repeat)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    response = await stack.enter_async_context(self._open(call))
                    break
                except PalimpsestError as error:
                    await asyncio.sleep(attempts.after(error))
            yield response

    @asynccontextmanager
    async def _open(self, call: Call[T], content: AsyncIterable[bytes] | None = None) -> AsyncIterator[httpx2.Response]:
        try:
            async with self.http.stream(
                call.method,
                call.path,
                params=call.params,
                headers=call.headers,
                json=call.json,
                content=content,
            ) as response:
                if response.is_error:
                    raise response_error(response.status_code, await response.aread(), response.headers)
                yield response
        except TRANSPORT_ERRORS as error:
            raise transport_error(error, str(self.http.base_url)) from error
