"""A real server in processes of its own: started and waited for, killed without warning, halted, or stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from palimpsest import Client, PalimpsestError

from bench.server_output import ServerOutput

PATIENCE = 60.0
"""Seconds after which something that should have happened has failed."""
_ANSWER_SECONDS = 240.0
"""How long a request may take: one of a hundred thousand tokens, beside others, on a slow machine."""
_PREFIX = "PALIMPSEST_"
_DYING_SECONDS = 10.0


class ServerFailedError(RuntimeError):
    """The server did not do what a server does; the text names its log."""


def wait_until(happened: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until it has happened. Raises `TimeoutError` naming `what`."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether there is such a process. One that has ended and that nobody has waited for yet is none any more."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Its name, in brackets, may hold anything.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


class ServerProcess:
    """One server at a time on a free port, with the worker processes it starts.

    `settings` are variables without their prefix (`{"model": …, "data_dir": …}`) on top of the caller's, which are ignored
    with `alone`; `environment` holds further variables as they are, and `within` a command that executes the one given behind
    it, such as `("nice",)`. All that the processes print is appended to the file
    `log`. `ready_seconds` is how long a start may take, with its model. As a context manager it starts on entry, and leaves
    no process behind on exit.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        alone: bool = False,
        within: Sequence[str] = (),
        ready_seconds: float = 300.0,
    ) -> None:
        self.settings, self.environment = settings, environment or {}
        self._log, self._alone, self._within, self._ready_seconds = log, alone, within, ready_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._output: ServerOutput | None = None
        self._workers_awaited = 1

    @property
    def log(self) -> Path:
        """Where the output of all its lives is."""
        return self._log

    @property
    def output(self) -> str:
        """All it has printed, over all its lives."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def data_dir(self) -> Path:
        """Folder of its sessions, which outlives it."""
        folder = {name.upper(): value for name, value in self.settings.items()}["DATA_DIR"]
        return Path(str(folder))

    @property
    def url(self) -> str:
        """Where it listens in this life; waits for that. Raises `ServerFailedError`."""
        _, output = self._running
        try:
            return output.url.result(self._ready_seconds)
        except TimeoutError:
            raise self._failure("did not listen in time") from None
        except EOFError:
            raise self._failure("ended before it listened") from None

    @property
    def pid(self) -> int:
        """The HTTP process."""
        return self._running[0].pid

    @property
    def worker_pids(self) -> frozenset[int]:
        """Process ids of the workers that became ready in this life."""
        return frozenset(self._output.workers) if self._output else frozenset()

    @property
    def worker_pid(self) -> int:
        """The process of the newest worker."""
        return self._running[1].workers[-1]

    @property
    def worker_rss(self) -> int:
        """Bytes of memory the newest worker occupies."""
        resident_pages = int(Path(f"/proc/{self.worker_pid}/statm").read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")

    def client(self, *, retries: int = 0) -> Client:
        """A client of it; each life has another address."""
        return Client(self.url, timeout=_ANSWER_SECONDS, retries=retries)

    def launch(self) -> None:
        """Start, and return at once."""
        if self._process is not None:
            raise RuntimeError("this server runs already; stop or kill it first")
        self._workers_awaited = 1
        self._process = subprocess.Popen(
            [*self._within, sys.executable, "-c", "from server.cli import main; main()", "serve"],
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the caller, who then ends this
        )
        self._output = ServerOutput(self._process, self._log)

    def start(self) -> str:
        """Start, and wait until requests are taken. Returns the address. Raises `ServerFailedError`."""
        self.launch()
        try:
            self.wait_ready()
            return self.url
        except BaseException:
            self.kill()
            raise

    def wait_ready(self) -> None:
        """Wait until it takes requests, after `kill_worker` with another worker. Raises `ServerFailedError`."""
        _, output = self._running
        deadline = time.monotonic() + self._ready_seconds
        with Client(self.url, timeout=10.0, retries=0) as client:
            while time.monotonic() < deadline:
                with suppress(PalimpsestError):
                    if len(output.workers) >= self._workers_awaited and client.ready():
                        return
                if output.ended.is_set():
                    raise self._failure("ended before it was ready")
                time.sleep(0.05)
        raise self._failure(f"was not ready after {self._ready_seconds:.0f} s")

    def kill_worker(self) -> None:
        """SIGKILL the newest worker; the server is to start another one."""
        pid = self.worker_pid
        self._workers_awaited = len(self._running[1].workers) + 1
        os.kill(pid, signal.SIGKILL)

    def halt_worker(self) -> None:
        """SIGSTOP the newest worker: it holds what it holds, and does nothing."""
        os.kill(self.worker_pid, signal.SIGSTOP)

    def wake_worker(self) -> None:
        """SIGCONT the newest worker."""
        os.kill(self.worker_pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the HTTP process, and wait until its workers have followed. Does nothing when none runs.

        Raises `ServerFailedError` when a worker had to be killed, too.
        """
        self._end(signal.SIGKILL, 0.0)

    def stop(self, seconds: float = 60.0) -> None:
        """SIGTERM: the server drains and writes its sessions out. Killed when that takes longer than `seconds`."""
        self._end(signal.SIGTERM, seconds)

    def send_term(self) -> None:
        """Ask it to end, and return at once."""
        self._running[0].terminate()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, when it has ended by itself."""
        process, output = self._running
        code = process.wait(seconds)
        # The log is complete only now.
        output.ended.wait(_DYING_SECONDS)
        self._process = self._output = None
        return code

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

    @property
    def _running(self) -> tuple[subprocess.Popen[bytes], ServerOutput]:
        if self._process is None or self._output is None:
            raise RuntimeError("this server does not run; start it first")
        return self._process, self._output

    def _variables(self) -> dict[str, str]:
        # Keys of the caller's own server would lock this one's clients out.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith(_PREFIX) if self._alone else name == f"{_PREFIX}API_KEYS")
        }
        fixed = {"HOST": "127.0.0.1", "PORT": 0, "LOG_FORMAT": "json", "LOG_LEVEL": "info"}
        settings = {f"{_PREFIX}{name.upper()}": str(value) for name, value in {**self.settings, **fixed}.items()}
        return inherited | settings | {"PYTHONUNBUFFERED": "1"} | dict(self.environment)

    def _end(self, number: signal.Signals, patience: float) -> None:
        process, output = self._process, self._output
        if process is None or output is None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience or _DYING_SECONDS)
        process.kill()
        process.wait()
        # A halted worker can notice nothing.
        _send_all(output.workers, signal.SIGCONT)
        followed = output.ended.wait(_DYING_SECONDS)
        if not followed:
            _send_all(output.workers, signal.SIGKILL)
            output.ended.wait(_DYING_SECONDS)
        # The kernel closes what a process has open before the process is gone.
        wait_until(lambda: not any(map(is_running, output.workers)), "the end of the workers", _DYING_SECONDS)
        self._process = self._output = None
        if not followed:
            raise self._failure("left a worker behind, which had to be killed")

    def _failure(self, what: str) -> ServerFailedError:
        return ServerFailedError(f"the server {what}; its log is {self._log}")


def _send_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
