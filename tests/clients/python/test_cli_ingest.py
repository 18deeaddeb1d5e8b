"""`palimpsest ingest`: every character once, whatever breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from palimpsest.cli.app import build
from typer.testing import CliRunner, Result

from tests.clients.python.script import Failure

PIECE = 16 * 1024
TEXT = "".join(f"Zeile {number}: ein Wal 🐋 in der Tiefe\r\n" for number in range(3000))
"""About seven pieces; characters of one to four bytes cross the borders of every block."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "palimpsest"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "the book.txt"
    path.write_bytes(TEXT.encode())
    return path


def run(server: Any, *arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(build(), ["--server", server.url, *arguments], input=stdin, env={"COLUMNS": "200"})


def only_session(script: Any) -> str:
    (session_id,) = script.sessions
    return str(session_id)


def test_a_text_goes_into_a_new_session_whole(server: Any, script: Any, book: Path) -> None:
    result = run(server, "ingest", str(book))
    assert result.exit_code == 0
    session_id = only_session(script)
    assert script.texts[session_id] == TEXT
    assert f"{len(TEXT):,} tokens" in result.stdout
    assert "memory 24.1 MiB, fixed" in result.stdout
    assert f"palimpsest chat --server {server.url} --session {session_id}" in result.stderr


def test_it_is_sent_in_pieces_with_operations_made_of_text_and_offset(server: Any, script: Any, book: Path) -> None:
    run(server, "ingest", str(book))
    operations = [op_id for verb, op_id in script.requests if verb == "append"]
    stems = {op_id.rpartition("-")[0] for op_id in operations}
    assert len(stems) == 1
    assert [int(op_id.rpartition("-")[2]) for op_id in operations] == list(range(0, len(TEXT), PIECE))


def test_a_broken_run_goes_on_where_it_stopped(server: Any, script: Any, book: Path) -> None:
    session_id = script.add()["id"]
    script.failures.extend([Failure("append", drop=True), Failure("append", drop=True)])
    script.failures.append(Failure("append", status=422, code="invalid_request"))
    broken = run(server, "ingest", str(book), "--session", session_id)
    assert broken.exit_code == 1
    assert script.texts[session_id] == TEXT[:PIECE]
    assert f"ingest --server {server.url} --session {session_id} '{book}'" in broken.stderr
    assert run(server, "ingest", str(book), "--session", session_id).exit_code == 0
    assert script.texts[session_id] == TEXT


def test_a_resumed_run_sends_only_what_is_missing(
    server: Any, script: Any, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = script.add()["id"]
    whole = script.append
    taken = 0

    def until_the_third(session: str, text: str, op_id: str | None) -> dict[str, Any]:
        nonlocal taken
        taken += 1
        if taken == 3:
            script.failures.append(Failure("append", status=422, code="invalid_request"))
        return dict(whole(session, text, op_id))

    monkeypatch.setattr(script, "append", until_the_third)
    assert run(server, "ingest", str(book), "--session", session_id).exit_code == 1
    script.requests.clear()
    assert run(server, "ingest", str(book), "--session", session_id).exit_code == 0
    assert script.texts[session_id] == TEXT
    first = next(op_id for verb, op_id in script.requests if verb == "append")
    assert first.endswith(f"-{3 * PIECE}")


def test_without_its_notes_it_sends_all_again_and_nothing_is_applied_twice(
    server: Any, script: Any, book: Path, state: Path
) -> None:
    session_id = script.add()["id"]
    run(server, "ingest", str(book), "--session", session_id)
    for note in state.iterdir():
        note.write_text("{ damaged")
    assert run(server, "ingest", str(book), "--session", session_id).exit_code == 0
    assert script.texts[session_id] == TEXT


def test_a_finished_text_is_not_sent_again(server: Any, script: Any, book: Path) -> None:
    session_id = script.add()["id"]
    run(server, "ingest", str(book), "--session", session_id)
    script.requests.clear()
    result = run(server, "ingest", str(book), "--session", session_id)
    assert "earlier run" in result.stdout
    assert not [verb for verb, _ in script.requests if verb == "append"]


def test_it_waits_for_a_server_that_restarts(server: Any, script: Any, book: Path) -> None:
    session_id = script.add()["id"]
    command = [sys.executable, "-c", "from palimpsest.cli import main; main()"]
    arguments = ["--server", server.url, "ingest", str(book), "--session", session_id]
    appended = threading.Event()
    whole = script.append

    def slow(session: str, text: str, op_id: str | None) -> dict[str, Any]:
        answer = dict(whole(session, text, op_id))
        appended.set()
        time.sleep(0.1)
        return answer

    script.append = slow
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert appended.wait(20)
    server.stop()
    time.sleep(0.3)
    server.start()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0, errors
    assert script.texts[session_id] == TEXT


def test_patience_ends_with_the_way_to_go_on(server: Any, script: Any, book: Path) -> None:
    session_id = script.add()["id"]
    script.failures.extend([Failure("append")] * 50)
    result = run(server, "ingest", str(book), "--session", session_id, "--patience", "0.5")
    assert result.exit_code == 1
    assert "Go on with: palimpsest ingest" in result.stderr
    assert len(script.failures) < 50


def test_interrupted_it_says_how_to_go_on(server: Any, script: Any, book: Path) -> None:
    session_id = script.add()["id"]
    script.failures.extend([Failure("append")] * 1000)
    # A shell that runs the tests in the background has its children ignore SIGINT.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heeding + "from palimpsest.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "--server", server.url, "ingest", str(book), "--session", session_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 20
    while "append" not in [verb for verb, _ in script.requests] and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"--session {session_id}" in errors.decode()
    assert "Traceback" not in errors.decode()


@pytest.mark.parametrize("before", [0, 5, 1024 * 1024 - 1, 1024 * 1024 + 7])
def test_text_that_is_not_utf8_is_refused_with_the_byte(server: Any, script: Any, tmp_path: Path, before: int) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"a" * before + b"\xe4bc" + b"a" * 10)
    result = run(server, "ingest", str(path))
    assert result.exit_code == 1
    assert f"at byte {before:,}:" in result.stderr
    assert not script.sessions


def test_a_character_cut_off_at_the_end_is_refused(server: Any, script: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes(b"abc" + "🐋".encode()[:3])
    result = run(server, "ingest", str(path))
    assert "at byte 3:" in result.stderr
    assert result.exit_code == 1


def test_standard_input_and_names(server: Any, script: Any) -> None:
    assert run(server, "ingest", "-", "--name", "moby", stdin=b"one ").exit_code == 0
    assert run(server, "ingest", "-", "--name", "moby", stdin=b"two").exit_code == 0
    session_id = only_session(script)
    assert script.texts[session_id] == "one two"
    assert script.sessions[session_id]["metadata"] == {"name": "moby"}


def test_an_ambiguous_name_lists_the_candidates(server: Any, script: Any, book: Path) -> None:
    ids = [script.add({"name": "moby"})["id"] for _ in range(2)]
    result = run(server, "ingest", str(book), "--name", "moby")
    assert result.exit_code == 2
    assert all(session_id in result.stderr for session_id in ids)


def test_missing_and_empty_files(server: Any, script: Any, tmp_path: Path) -> None:
    missing = run(server, "ingest", str(tmp_path / "nowhere.txt"))
    assert missing.exit_code == 1
    assert "nowhere.txt" in missing.stderr
    (tmp_path / "empty.txt").touch()
    empty = run(server, "ingest", str(tmp_path / "empty.txt"))
    assert empty.exit_code == 0
    assert "empty.txt: empty" in empty.stdout
