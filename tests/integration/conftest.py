"""Servers of the tiny model, with a memory so small that it folds all the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from palimpsest import Client
from palimpsest.session import SessionHandle

from models.calibration import Calibration
from models.codec import StateKind
from models.load import LoadedModel, load_model
from models.weights.checkpoint import load_checkpoint
from tests.integration.server_process import ServerProcess
from tests.integration.texts import plain_text

StartServer = Callable[..., ServerProcess]

MEMORY = {"window": 32, "segment": 16, "slots": 24, "sinks": 4}
HEADS = ((1, 0, 0.9), (2, 1, 0.8), (3, 0, 0.7))


@pytest.fixture(scope="session")
def calibration(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Retrieval heads of the tiny model, chosen freely: a random model has none."""
    path = tmp_path_factory.mktemp("calibration") / "tiny.json"
    fingerprint = load_checkpoint(str(tiny_model)).fingerprint
    Calibration(model="tiny", fingerprint=fingerprint, heads=HEADS, keep=len(HEADS), measured={}).write(path)
    return path


@pytest.fixture(scope="session")
def server_environment(tiny_model: Path, calibration: Path) -> dict[str, str]:
    settings = {
        **MEMORY,
        "model": tiny_model,
        "calibration": calibration,
        "dtype": "float32",
        "threads": 1,
        "idle_seconds": 0.2,
        "drain_seconds": 10,
        "send_timeout_seconds": 2,
    }
    return {f"PALIMPSEST_{name.upper()}": str(value) for name, value in settings.items()}


@pytest.fixture(scope="session")
def tiny(tiny_model: Path, calibration: Path) -> LoadedModel:
    """What the servers have loaded."""
    return load_model(str(tiny_model), options=MEMORY, calibration=calibration, dtype=torch.float32)


@pytest.fixture(scope="session")
def state_kind(tiny: LoadedModel) -> StateKind:
    """What the servers' snapshots hold."""
    return tiny.kind


@pytest.fixture(scope="session")
def server(server_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests that leave it running."""
    process = ServerProcess(tmp_path_factory.mktemp("server"), server_environment)
    try:
        process.start()
        yield process
    finally:
        process.clean_up()


@pytest.fixture
def start_server(server_environment: dict[str, str], tmp_path: Path) -> Iterator[StartServer]:
    """Starts a server of the test's own, with settings it wants otherwise."""
    begun: list[ServerProcess] = []

    def start(*, ready: bool = True, **settings: object) -> ServerProcess:
        changed = {f"PALIMPSEST_{name.upper()}": str(value) for name, value in settings.items()}
        folder = tmp_path / f"server-{len(begun)}"
        folder.mkdir()
        process = ServerProcess(folder, {**server_environment, **changed})
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
            process.clean_up()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def session(client: Client) -> SessionHandle:
    return client.sessions.create()


@pytest.fixture(scope="session")
def narrow(server_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with room for a single session."""
    environment = {**server_environment, "PALIMPSEST_RESIDENT_SESSIONS": "1"}
    process = ServerProcess(tmp_path_factory.mktemp("narrow"), environment)
    try:
        process.start()
        yield process
    finally:
        process.clean_up()


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
