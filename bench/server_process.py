"""A real server in processes of its own: started and waited for, killed without warning, or stopped in order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from palimpsest import Client, PalimpsestError

_LISTENING = re.compile(rb"^Listening on (http://\S+)")
_POLL_SECONDS = 0.1
_DYING_SECONDS = 10.0


class ServerFailedError(RuntimeError):
    """The server did not do what a server does; the text names its log."""


class ServerProcess:
    """One server at a time on a free port, with the worker processes it starts.

    `settings` are variables without their prefix (`{"MODEL": …, "DATA_DIR": …}`) on top of the environment's; all that
    the processes print is appended to the file `log`. `ready_seconds` is how long a start may take, with its model.
    As a context manager it starts on entry, and leaves no process behind on exit.
    """

    def __init__(self, settings: Mapping[str, object], log: Path, *, ready_seconds: float = 300.0) -> None:
        self._settings, self._log, self._ready_seconds = settings, log, ready_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._output: _Output | None = None

    @property
    def log(self) -> Path:
        """Where the output of all its lives is."""
        return self._log

    @property
    def worker_pids(self) -> frozenset[int]:
        """Process ids of the workers that became ready in this life."""
        return frozenset(self._output.workers) if self._output else frozenset()

    def start(self) -> str:
        """Start, and wait until requests are taken. Returns the address. Raises `ServerFailedError`."""
        if self._process is not None:
            raise RuntimeError("this server runs already; stop or kill it first")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from server.cli import main; main()", "serve"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the caller, who then ends this
        )
        self._output = _Output(self._process, self._log)
        try:
            return self._wait_until_ready(self._output)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, and wait until no process of it is left. Does nothing when none runs."""
        self._end(signal.SIGKILL, 0.0)

    def stop(self, seconds: float = 60.0) -> None:
        """SIGTERM: the server drains and writes its sessions out. Killed when that takes longer than `seconds`."""
        self._end(signal.SIGTERM, seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self.kill()

    def _environment(self) -> dict[str, str]:
        # Keys of the caller's own server would lock this one's clients out.
        inherited = {name: value for name, value in os.environ.items() if name != "PALIMPSEST_API_KEYS"}
        fixed = {"HOST": "127.0.0.1", "PORT": 0, "LOG_FORMAT": "json", "LOG_LEVEL": "info"}
        settings = {f"PALIMPSEST_{name}": str(value) for name, value in {**self._settings, **fixed}.items()}
        return inherited | settings | {"PYTHONUNBUFFERED": "1"}

    def _wait_until_ready(self, output: _Output) -> str:
        deadline = time.monotonic() + self._ready_seconds
        try:
            url = output.url.result(self._ready_seconds)
        except TimeoutError:
            raise self._failure("did not listen in time") from None
        except EOFError:
            raise self._failure("ended before it listened") from None
        with Client(url, timeout=10.0, retries=0) as client:
            while time.monotonic() < deadline:
                with suppress(PalimpsestError):
                    if client.ready():
                        return url
                if output.ended.is_set():
                    raise self._failure("ended before it was ready")
                time.sleep(_POLL_SECONDS)
        raise self._failure(f"was not ready after {self._ready_seconds:.0f} s")

    def _end(self, number: signal.Signals, patience: float) -> None:
        process, output = self._process, self._output
        if process is None or output is None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience or _DYING_SECONDS)
        process.kill()
        process.wait()
        # Workers notice by themselves that their parent is gone. One that does not would keep the store open.
        if not output.ended.wait(_DYING_SECONDS):
            for pid in output.workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not output.ended.wait(_DYING_SECONDS):
                raise self._failure("left a process behind")
        self._process = self._output = None

    def _failure(self, what: str) -> ServerFailedError:
        return ServerFailedError(f"the server {what}; its log is {self._log}")


class _Output:
    """Copies what a server's processes print to a file, and picks out what has to be known.

    All of them write into one pipe: when it ends, none of them is left.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        assert isinstance(process.stdout, BufferedReader)
        self.url: Future[str] = Future()
        self.ended = threading.Event()
        self.workers: set[int] = set()
        threading.Thread(target=self._copy, args=(process.stdout, log), name="server output", daemon=True).start()

    def _copy(self, pipe: BufferedReader, log: Path) -> None:
        with pipe, log.open("ab", buffering=0) as file:
            for line in pipe:
                file.write(line)
                self._note(line)
        if not self.url.done():
            self.url.set_exception(EOFError())
        self.ended.set()

    def _note(self, line: bytes) -> None:
        if not self.url.done() and (found := _LISTENING.match(line)):
            self.url.set_result(found[1].decode())
        elif b'"worker ready"' in line:
            with suppress(ValueError):
                self.workers.add(int(json.loads(line)["pid"]))
