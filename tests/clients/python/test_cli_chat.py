"""`palimpsest chat`, at a terminal and in a pipe, as a process of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# A shell that runs the tests in the background has its children ignore SIGINT; these are about what it does.
HEEDING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = [sys.executable, "-c", HEEDING + "from palimpsest.cli import main; main()"]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("PALIMPSEST_URL", server.url)
    monkeypatch.setenv("COLUMNS", "200")


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "chat", *arguments], input=text, capture_output=True, text=True, timeout=40, check=False
    )


class Terminal:
    """A chat at a terminal: type, and wait for what it shows."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "chat", *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C again while nothing happens: the prompt is shown a moment before input() waits, and a signal
        in between only counts at the next key."""
        for _ in range(30):
            self.interrupt()
            with suppress(AssertionError):
                self.expect(text, seconds=1)
                return
        raise AssertionError(f"no interrupt led to {text!r}: {self.shown!r}")

    def expect(self, text: str, seconds: float = 20) -> str:
        """Wait for `text`; returns what came up to its end and forgets it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"waited for {text!r}, got {self.shown!r}")
            try:
                self.shown += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended before {text!r}: {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def close(self) -> int:
        self.process.kill()
        os.close(self.master)
        return self.process.wait(10)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_pipe_is_one_turn_a_line(script: Any) -> None:
    result = piped("hello\n\nand bye\n", "--name", "moby", "--system", "Be brief.", "--max-tokens", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "echo: user: hello \necho: user: and bye \n"
    (session_id,) = script.sessions
    assert script.texts[session_id] == "system: Be brief.user: hellouser: and bye"
    assert script.generations[0]["max_tokens"] == 5
    assert f"--session {session_id}" in result.stderr


def test_it_goes_on_with_the_last_session_unless_new(script: Any) -> None:
    piped("one\n")
    piped("two\n")
    assert list(script.texts.values()) == ["user: oneuser: two"]
    piped("three\n", "--new")
    assert list(script.texts.values()) == ["user: oneuser: two", "user: three"]
    script.sessions.clear()
    gone = piped("four\n")
    assert gone.returncode == 0
    assert "is gone" in gone.stderr


def test_system_needs_a_new_session(script: Any) -> None:
    result = piped("x\n", "--session", script.add()["id"], "--system", "Be brief.")
    assert result.returncode == 2
    assert "--new" in result.stderr


def test_an_unknown_session_is_one_line(server: Any) -> None:
    result = piped("x\n", "--session", "sess_unknown")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_an_error_in_a_pipe_ends_with_code_1(script: Any) -> None:
    script.socket_errors.append("invalid_request")
    result = piped("x\ny\n")
    assert result.returncode == 1
    assert "scripted" in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_stops_the_answer_and_then_leaves(script: Any, terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    screen.expect("> ")
    screen.type("forever")
    screen.expect("again again again")
    screen.interrupt()
    screen.expect("(stopped)")
    screen.expect("> ")
    assert script.cancelled == ["gen_1"]
    screen.type("still there?")
    screen.expect("echo: user: still there?")
    screen.expect("> ")
    screen.interrupt_until("Go on another day with: palimpsest chat")
    assert screen.process.wait(10) == 0


def test_end_of_input_leaves(script: Any, terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    screen.expect("> ")
    os.write(screen.master, b"\x04")
    screen.expect("Go on another day with: palimpsest chat")
    assert screen.process.wait(10) == 0


def test_a_restart_while_nothing_runs_goes_unnoticed(
    server: Any, script: Any, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal()
    screen.expect("> ")
    screen.type("one")
    screen.expect("echo: user: one")
    server.stop()
    server.start()
    screen.expect("> ")
    screen.type("two")
    screen.expect("echo: user: two")
    assert list(script.texts.values()) == ["user: oneuser: two"]


@pytest.mark.parametrize("events", [-1, 0, 1, 3, 5])
def test_an_answer_goes_on_after_a_restart(script: Any, events: int) -> None:
    script.socket_closes.append((1012, events))
    result = piped("one two\nmore\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "echo: user: one two \necho: user: more \n"
    assert "connecting again" in result.stderr
    assert len(script.generations) == 2
    assert list(script.texts.values()) == ["user: one twouser: more"]


def test_an_answer_survives_a_server_that_is_away_for_a_while(
    server: Any, script: Any, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal()
    screen.expect("> ")
    screen.type("forever")
    screen.expect("again again again")
    server.stop()
    screen.expect("connecting again")
    time.sleep(1.5)
    server.start()
    screen.expect("again again again", seconds=30)
    screen.interrupt()
    screen.expect("(stopped)")
    screen.expect("> ")
    assert len(script.generations) == 1
    assert len(script.told) == 1


def test_an_answer_that_is_gone_is_one_line(script: Any, terminal: Callable[..., Terminal]) -> None:
    script.forgetful = True
    script.socket_closes.append((1012, 2))
    result = piped("one two\n")
    assert result.returncode == 1
    assert "cannot be taken up again" in result.stderr
    assert "Traceback" not in result.stderr
    script.socket_closes.append((1012, 2))
    screen = terminal()
    screen.expect("> ")
    screen.type("three")
    screen.expect("cannot be taken up again")
    screen.expect("> ")
    screen.type("four")
    screen.expect("echo: user: four")


def test_an_empty_answer_is_said_to_be_empty(script: Any) -> None:
    script.words = []
    result = piped("hello\n")
    assert result.returncode == 0
    assert result.stdout == "\n"
    assert "nothing to say" in result.stderr
    script.words = ["\n", " "]
    assert "nothing to say" in piped("hello\n").stderr
    script.words = ["ah"]
    again = piped("hello\n")
    assert (again.stdout, "nothing to say" in again.stderr) == ("ah\n", False)
