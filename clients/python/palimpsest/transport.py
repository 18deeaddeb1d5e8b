"""Sending requests over HTTP, synchronously."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import httpx2

from palimpsest.calls import Call
from palimpsest.errors import PalimpsestError
from palimpsest.retry import RetryPolicy
from palimpsest.wire import response_error, transport_error

T = TypeVar("T")

TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)


class Transport:
    """One HTTP connection pool with the retry policy around it."""

    def __init__(self, http: httpx2.Client, policy: RetryPolicy) -> None:
        self.http = http
        self._policy = policy

    def run(self, call: Call[T], body: Callable[[], Iterable[bytes]] | None = None) -> T:
        """Send and read the answer, again if that is safe. `body` opens a streamed body for each attempt."""
        attempts = self._policy.attempts(call.repeat)
        while True:
            try:
                with self._open(call, body() if body else None) as response:
                    response.read()
                return call.read(response)
            except PalimpsestError as error:
                time.sleep(attempts.after(error))

    @contextmanager
    def stream(self, call: Call[None]) -> Iterator[httpx2.Response]:
        """Send, and hold the answer open. Repeats only until the answer's head has come."""
        attempts = self._policy.attempts(call.repeat)
        with ExitStack() as stack:
            while True:
                try:
                    response = stack.enter_context(self._open(call))
                    break
                except PalimpsestError as error:
                    time.sleep(attempts.after(error))
            yield response

    @contextmanager
    def _open(self, call: Call[T], content: Iterable[bytes] | None = None) -> Iterator[httpx2.Response]:
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
