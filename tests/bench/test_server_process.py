"""Servers of the benches really start, and really die."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from palimpsest import Client

from bench.server_process import ServerFailedError, ServerProcess


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and waits for its parent to notice is no process any more.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.usefixtures("small_settings")
def test_no_process_survives_a_kill_and_the_same_object_starts_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_API_KEYS", '{"secret": "somebody"}')
    server = ServerProcess({"MODEL": tiny_model, "DATA_DIR": tmp_path / "data"}, tmp_path / "log")
    with Client(server.start()) as client:
        session = client.sessions.create()
        position = session.append("ba ke lo mi nu").position
        workers = server.worker_pids
        assert workers
        assert all(_alive(pid) for pid in workers)
        server.kill()
    assert not any(_alive(pid) for pid in workers)
    assert server.worker_pids == frozenset()
    server.kill()

    with Client(server.start()) as client:
        assert client.sessions.get(session.id).info.position == position
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
    server.stop()
    assert server.log.read_text().count("worker ready") == 2
    assert "Traceback" not in server.log.read_text()


def test_a_server_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    settings = {"MODEL": tmp_path, "DATA_DIR": tmp_path / "data", "WINDOW": "none"}
    server = ServerProcess(settings, tmp_path / "log", ready_seconds=30)
    with pytest.raises(ServerFailedError, match=str(tmp_path / "log")):
        server.start()
    assert "PALIMPSEST_WINDOW" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("small_settings")
def test_a_server_that_never_becomes_ready_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    server = ServerProcess({"MODEL": tmp_path, "DATA_DIR": tmp_path / "data"}, tmp_path / "log", ready_seconds=4)
    with pytest.raises(ServerFailedError, match=r"not ready|ended|did not listen"):
        server.start()
    assert server.worker_pids == frozenset()
