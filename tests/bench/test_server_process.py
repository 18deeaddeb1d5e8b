"""Servers of the benches really start, and really die."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from palimpsest import Client

from bench.server_process import ServerFailedError, ServerProcess, is_running, wait_until


def test_only_processes_that_have_not_ended_run() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        assert is_running(sleeper.pid)
        sleeper.kill()
        # Ended, but not waited for: it still has an id.
        wait_until(lambda: not is_running(sleeper.pid), "the end of a process", 10.0)
        assert sleeper.returncode is None
    assert not is_running(sleeper.pid)


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
        assert all(is_running(pid) for pid in workers)
        server.kill()
    assert not any(is_running(pid) for pid in workers)
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
