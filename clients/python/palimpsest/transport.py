"""Sending requests over HTTP, synchronously."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2

from palimpsest.calls import Call
from palimpsest.errors import PalimpsestError
from palimpsest.replacement import Replacement
from palimpsest.retry import Attempts, Repeat, RetryPolicy
from palimpsest.wire import response_error, transport_error

T = TypeVar("T")

TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)


class Transport:
    """One HTTP connection pool with the retry policy around it."""

    def __init__(self, http: httpx2.Client, policy: RetryPolicy) -> None:
        self.http = http
        self.policy = policy

    def attempts(self, repeat: Repeat) -> Attempts:
        """Begin to count the attempts of one call."""
        return self.policy.attempts(repeat)

    def run(self, call: Call[T], body: Callable[[], Iterable[bytes]] | None = None) -> T:
        """Send and read the answer, again if that is safe. `body` opens a streamed body for each attempt."""
        attempts = self.attempts(call.repeat)
        while True:
            try:
                with self.open(call, body() if body else None) as response:
                    response.read()
                return call.read(response)
            except PalimpsestError as error:
                time.sleep(attempts.after(error))

    def save(self, call: Call[bytes], path: Path) -> None:
        """Write the answer's body to a file piece by piece; the file changes only when all of it has come."""
        attempts = self.attempts(call.repeat)
        while True:
            file = Replacement(path)
            try:
                with self.open(call) as response:
                    for piece in response.iter_bytes():
                        file.write(piece)
                file.keep()
                return
            except PalimpsestError as error:
                time.sleep(attempts.after(error))
            finally:
                file.drop()

    @contextmanager
    def open(self, call: Call[T], content: Iterable[bytes] | None = None) -> Iterator[httpx2.Response]:
        """Send once, and hold the answer open. Raises `ApiError` when the server says no."""
        try:
            with self.http.stream(
                call.method,
                call.path,
                params=call.params,
                headers=call.headers,
                json=call.json,
                content=content,
            ) as response:
                if response.is_error:
                    raise response_error(response.status_code, response.read(), response.headers)
                yield response
        except TRANSPORT_ERRORS as error:
            raise transport_error(error, str(self.http.base_url)) from error
