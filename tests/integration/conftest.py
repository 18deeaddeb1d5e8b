"""Servers of the tiny model, with a memory so small that it folds all the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from palimpsest import Client
from palimpsest.session import SessionHandle

from bench.server_process import ServerProcess
from bench.tiny_model import calibrate_tiny_model
from models.codec import StateKind
from models.load import LoadedModel, load_model
from tests.integration.texts import plain_text

StartServer = Callable[..., ServerProcess]

MEMORY = {"window": 32, "segment": 16, "slots": 24, "sinks": 4}


def server_in(folder: Path, settings: Mapping[str, object]) -> ServerProcess:
    """A server that has its log and its data in `folder`."""
    return ServerProcess({**settings, "data_dir": folder / "data"}, folder / "server.log", alone=True)


@pytest.fixture(scope="session")
def calibration(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Retrieval heads of the tiny model, chosen freely: a random model has none."""
    return calibrate_tiny_model(tiny_model, tmp_path_factory.mktemp("calibration") / "tiny.json")


@pytest.fixture(scope="session")
def server_settings(tiny_model: Path, calibration: Path) -> dict[str, object]:
    return {
        **MEMORY,
        "model": tiny_model,
        "calibration": calibration,
        "dtype": "float32",
        "threads": 1,
        "idle_seconds": 0.2,
        "drain_seconds": 10,
        "send_timeout_seconds": 2,
    }


@pytest.fixture(scope="session")
def tiny(tiny_model: Path, calibration: Path) -> LoadedModel:
    """What the servers have loaded."""
    return load_model(str(tiny_model), options=MEMORY, calibration=calibration, dtype=torch.float32)


@pytest.fixture(scope="session")
def state_kind(tiny: LoadedModel) -> StateKind:
    """What the servers' snapshots hold."""
    return tiny.kind


@pytest.fixture(scope="session")
def server(server_settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests that leave it running."""
    with server_in(tmp_path_factory.mktemp("server"), server_settings) as process:
        yield process


@pytest.fixture
def start_server(server_settings: dict[str, object], tmp_path: Path) -> Iterator[StartServer]:
    """Starts a server of the test's own, with settings it wants otherwise."""
    begun: list[ServerProcess] = []

    def start(*, ready: bool = True, **settings: object) -> ServerProcess:
        folder = tmp_path / f"server-{len(begun)}"
        folder.mkdir()
        process = server_in(folder, {**server_settings, **settings})
        begun.append(process)
        if ready:
            process.start()
        else:
            process.launch()
        return process

    try:
        yield start
    finally:
        for process in begun:
            process.stop()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def session(client: Client) -> SessionHandle:
    return client.sessions.create()


@pytest.fixture(scope="session")
def narrow(server_settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with room for a single session."""
    with server_in(tmp_path_factory.mktemp("narrow"), {**server_settings, "resident_sessions": 1}) as process:
        yield process


@pytest.fixture(scope="session")
def opening(server: ServerProcess) -> str:
    """A text after which the model goes on greedily for at least 300 tokens."""
    with server.client() as client:
        for seed in range(200, 300):
            session = client.sessions.create()
            session.append(plain_text(seed, 40))
            if session.generate(max_tokens=300, temperature=0, remember=False).finish_reason == "length":
                return plain_text(seed, 40)
    raise AssertionError("the tiny model always ends early")
