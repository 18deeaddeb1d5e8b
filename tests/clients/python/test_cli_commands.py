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


def test_fork_export_import(server: Any, script: Any, tmp_path: Path) -> None:
    parent = script.add({"name": "moby", "color": "white"})["id"]
    script.texts[parent] = "Call me"
    forked = run(server, "sessions", "fork", parent)
    assert forked.exit_code == 0
    assert "at 7 tokens" in forked.stdout
    run(server, "sessions", "fork", parent, "--name", "dick")
    file = str(tmp_path / "moby.session")
    exported = run(server, "sessions", "export", parent, file)
    assert exported.exit_code == 0
    assert file in exported.stdout
    assert "at 7 tokens" in run(server, "sessions", "import", file).stdout
    run(server, "sessions", "import", file, "--name", "ishmael")
    assert [session["metadata"] for session in script.sessions.values()] == [
        {"name": "moby", "color": "white"},
        {"color": "white"},
        {"color": "white", "name": "dick"},
        {"color": "white"},
        {"color": "white", "name": "ishmael"},
    ]
    assert list(script.texts.values()) == ["Call me"] * 5


def test_files_that_are_none_are_explained(server: Any, script: Any, tmp_path: Path) -> None:
    missing = run(server, "sessions", "import", str(tmp_path / "missing"))
    assert missing.exit_code == 1
    assert "No such file" in missing.stderr
    nowhere = run(server, "sessions", "export", script.add()["id"], str(tmp_path / "nowhere" / "file"))
    assert nowhere.exit_code == 1
    assert "nowhere" in nowhere.stderr
    (tmp_path / "other").write_text("nonsense")
    refused = run(server, "sessions", "import", str(tmp_path / "other"))
    assert refused.exit_code == 1
    assert run(server, "sessions", "fork", "sess_x").exit_code == 1
    assert len(script.sessions) == 1
    assert "Traceback" not in missing.stderr + nowhere.stderr + refused.stderr


@pytest.mark.parametrize("ending", ["error", "cut", "nothing"])
def test_an_answer_that_stays_broken_is_exit_code_1(server: Any, script: Any, ending: str) -> None:
    session_id = script.add()["id"]
    script.endings.append((ending, 3))
    assert run(server, "ask", "who?", "--session", session_id).stdout == "echo: user: who? \n"
    script.endings.extend([(ending, 4), (ending, 0), (ending, 0)])
    result = run(server, "ask", "who?", "--session", session_id)
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
