"""One fake server for all of the clients' tests, with a new script for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from palimpsest import Client

from tests.clients.python.fake_server import FakeServer
from tests.clients.python.script import Script


@pytest.fixture(scope="session")
def shared_server() -> Iterator[FakeServer]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def server(shared_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    # A fifth of the usual delays between attempts: the fake server is back at once.
    monkeypatch.setattr("palimpsest.retry.random.uniform", lambda least, most: most / 5)
    shared_server.forget()
    shared_server.start()
    return shared_server


@pytest.fixture
def script(server: FakeServer) -> Script:
    return server.script


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client
