"""`palimpsest sessions` and `palimpsest ask`, and how errors look."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from palimpsest.cli.app import build
from typer.testing import CliRunner, Result


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def run(server: Any, *arguments: str, stdin: str | None = None) -> Result:
    environment = {"PALIMPSEST_URL": server.url, "COLUMNS": "200"}
    return CliRunner().invoke(build(), list(arguments), input=stdin, env=environment)


def test_sessions_shows_a_table(server: Any, script: Any) -> None:
    session = script.add({"name": "moby [red]"})
    script.texts[session["id"]] = "x" * 12_345
    result = run(server, "sessions")
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if session["id"] in line)
    for cell in ("moby [red]", "12,345", "24.1 MiB", "never", "in "):
        assert cell in row
    assert run(server, "sessions", "list").stdout == result.stdout


def test_sessions_as_json(server: Any, script: Any) -> None:
    script.add({"name": "moby"})
    for arguments in (["sessions", "--json"], ["sessions", "list", "--json"]):
        (record,) = json.loads(run(server, *arguments).stdout)
        assert record["metadata"] == {"name": "moby"}
        assert record["created_at"].startswith("2030-01-01T00:00:00")


def test_no_sessions_says_how_to_begin(server: Any) -> None:
    assert "palimpsest chat" in run(server, "sessions").stdout
    assert json.loads(run(server, "sessions", "--json").stdout) == []


def test_show_rename_delete(server: Any, script: Any) -> None:
    first, second = script.add({"color": "white"})["id"], script.add()["id"]
    assert run(server, "sessions", "rename", first, "moby").exit_code == 0
    assert script.sessions[first]["metadata"] == {"color": "white", "name": "moby"}
    shown = run(server, "sessions", "show", first).stdout
    assert "moby" in shown
    assert "the last 7 word for word" in shown
    assert json.loads(run(server, "sessions", "show", first, "--json").stdout)["memory"]["folds"] == 2
    assert run(server, "sessions", "delete", first, second).exit_code == 0
    assert not script.sessions
    assert run(server, "sessions", "rename", first, " ").exit_code == 2


def test_ask_prints_the_answer_and_leaves_no_trace(server: Any, script: Any) -> None:
    session_id = script.add({"name": "moby"})["id"]
    result = run(server, "ask", "who?", "--name", "moby", "--max-tokens", "7", "--temperature", "0")
    assert result.stdout == "echo: user: who? \n"
    assert result.exit_code == 0
    assert script.texts[session_id] == ""
    (body,) = script.generations
    assert (body["remember"], body["max_tokens"], body["temperature"]) == (False, 7, 0.0)
    run(server, "ask", "-", "--session", session_id, "--remember", stdin="and now?")
    assert script.texts[session_id] == "user: and now?"


def test_ask_needs_a_session_and_a_question(server: Any, script: Any) -> None:
    assert run(server, "ask", "who?").exit_code == 2
    assert run(server, "ask", "who?", "--name", "nobody").exit_code == 1
    assert run(server, "ask", "who?", "--name", "a", "--session", "b").exit_code == 2
    assert run(server, "ask", " ", "--session", script.add()["id"]).exit_code == 2


@pytest.mark.parametrize("ending", ["error", "cut", "nothing"])
def test_a_broken_answer_is_exit_code_1(server: Any, script: Any, ending: str) -> None:
    script.sse_ending = ending
    result = run(server, "ask", "who?", "--session", script.add()["id"])
    assert result.exit_code == 1
    assert result.stdout == "echo: user: who? \n"
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_errors_say_what_to_do(server: Any, script: Any) -> None:
    assert "`palimpsest sessions`" in run(server, "sessions", "show", "sess_x").stderr
    script.api_key = "secret"
    refused = run(server, "sessions")
    assert refused.exit_code == 1
    assert "--api-key" in refused.stderr
    assert run(server, "sessions", "--api-key", "secret").exit_code == 0
    assert run(server, "--api-key", "secret", "sessions", "list").exit_code == 0


@pytest.mark.parametrize("address", ["localhost:8000", "http://[::1", "nonsense", "http://"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    result = CliRunner().invoke(build(), ["sessions", "--server", address])
    assert result.exit_code == 1
    assert "cannot connect" in result.stderr


def test_no_server_is_explained() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        result = CliRunner().invoke(build(), ["sessions", "--server", url])
    assert result.exit_code == 1
    assert "make serve" in result.stderr
    assert "Traceback" not in result.stderr
