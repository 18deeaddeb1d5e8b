"""What the synchronous client raises."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from palimpsest import (
    ApiError,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerFault,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)

from tests.clients.python.script import Failure


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthenticated),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, ServerFault),
        (503, Unavailable),
        (599, ServerFault),
    ],
)
def test_statuses_have_classes(server: Any, script: Any, status: int, kind: type[ApiError]) -> None:
    script.failures.append(Failure("version", status=status, code="c"))
    with Client(server.url, retries=0) as client, pytest.raises(ApiError) as caught:
        client.version()
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "c")


def test_the_key_is_sent(server: Any, script: Any) -> None:
    script.api_key = "secret"
    with Client(server.url, api_key="secret") as client:
        client.version()
    with Client(server.url) as client, pytest.raises(Unauthenticated):
        client.version()


def test_nobody_listening_is_a_refused_connection() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with (
            Client(url, retries=1) as client,
            pytest.raises(ConnectionFailed, match="cannot connect") as caught,
        ):
            client.sessions.create()
    assert caught.value.refused


def test_an_answer_that_is_not_ours_says_so(server: Any) -> None:
    with Client(f"{server.url}/elsewhere") as client, pytest.raises(UnexpectedAnswer, match="Palimpsest"):
        client.version()
