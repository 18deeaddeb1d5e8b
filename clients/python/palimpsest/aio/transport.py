"""Sending requests over HTTP, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx2

from palimpsest.calls import Call
from palimpsest.errors import PalimpsestError
from palimpsest.replacement import Replacement
from palimpsest.retry import Attempts, Repeat, RetryPolicy
from palimpsest.transport import TRANSPORT_ERRORS
from palimpsest.wire import response_error, transport_error

T = TypeVar("T")


class AsyncTransport:
    """One HTTP connection pool with the retry policy around it."""

    def __init__(self, http: httpx2.AsyncClient, policy: RetryPolicy) -> None:
        self.http = http
        self.policy = policy

    def attempts(self, repeat: Repeat) -> Attempts:
        """Begin to count the attempts of one call."""
        return self.policy.attempts(repeat)

    async def run(self, call: Call[T], body: Callable[[], AsyncIterable[bytes]] | None = None) -> T:
        """Send and read the answer, again if that is safe. `body` opens a streamed body for each attempt."""
        attempts = self.attempts(call.repeat)
        while True:
            try:
                async with self.open(call, body() if body else None) as response:
                    await response.aread()
                return call.read(response)
            except PalimpsestError as error:
                await asyncio.sleep(attempts.after(error))

    async def save(self, call: Call[bytes], path: Path) -> None:
        """Write the answer's body to a file piece by piece; the file changes only when all of it has come."""
        attempts = self.attempts(call.repeat)
        while True:
            file = await asyncio.to_thread(Replacement, path)
            try:
                async with self.open(call) as response:
                    async for piece in response.aiter_bytes():
                        await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(file.keep)
                return
            except PalimpsestError as error:
                await asyncio.sleep(attempts.after(error))
            finally:
                file.drop()

    @asynccontextmanager
    async def open(self, call: Call[T], content: AsyncIterable[bytes] | None = None) -> AsyncIterator[httpx2.Response]:
        """Send once, and hold the answer open. Raises `ApiError` when the server says no."""
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
