"""The real server as a process of its own, to be spoken to, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx2
from palimpsest import Client

PATIENCE = 60.0
"""Seconds after which something that should have happened has failed."""


def wait_until(happened: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until it has happened. Raises `TimeoutError` naming `what`."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


class ServerProcess:
    """`palimpsest-server serve` on a free port and a data folder that outlives it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.data_dir = folder / "data"
        self._log = folder / "server.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PALIMPSEST_")}
        self._environment = {
            **inherited,
            "PALIMPSEST_DATA_DIR": str(self.data_dir),
            "PALIMPSEST_LOG_FORMAT": "json",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._workers_begun = 0

    def launch(self) -> None:
        """Start, and return at once."""
        self._workers_begun += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0"],
                env=self._environment,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start, and return when it takes requests."""
        listening = self.log.count("Listening on")
        self.launch()
        wait_until(lambda: self.log.count("Listening on") > listening or self._ended, "the server listens")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the newest worker takes requests."""
        wait_until(lambda: len(self._ready_lines) >= self._workers_begun or self._ended, "a worker is ready")
        assert not self._ended, f"the server ended:\n{self.log[-3000:]}"
        wait_until(lambda: httpx2.get(f"{self.url}/readyz", trust_env=False).status_code == 200, "the server is ready")

    @property
    def log(self) -> str:
        """All it has logged, over all starts."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def url(self) -> str:
        """Where it listens since its last start."""
        return self.log.rpartition("Listening on ")[2].split()[0]

    @property
    def worker_pid(self) -> int:
        """The process of the newest worker."""
        return int(json.loads(self._ready_lines[-1])["pid"])

    @property
    def worker_rss(self) -> int:
        """Bytes of memory the worker occupies."""
        resident_pages = int(Path(f"/proc/{self.worker_pid}/statm").read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")

    def client(self, *, retries: int = 0) -> Client:
        """A client of it; each start has another address."""
        return Client(self.url, timeout=PATIENCE, retries=retries)

    def kill_worker(self) -> None:
        """SIGKILL the worker; the server is to start another one."""
        self._workers_begun += 1
        os.kill(self.worker_pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL the HTTP process. The worker must notice and go by itself."""
        worker = self.worker_pid
        self._running.kill()
        self._running.wait()
        wait_until(lambda: not _alive(worker), "the worker has followed its server")

    def restart(self) -> None:
        """Start again over the same data."""
        self.start()

    def send_term(self) -> None:
        """Ask it to end, and return at once."""
        self._running.terminate()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._running.wait(PATIENCE)

    def terminate(self) -> int:
        """Ask it to end; its exit code when it has."""
        self.send_term()
        return self.wait()

    def clean_up(self) -> None:
        """End whatever still runs."""
        if not self._ended:
            self._running.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._running.wait(10)
            self._running.kill()
            self._running.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def _ready_lines(self) -> list[str]:
        return [line for line in self.log.splitlines() if '"worker ready"' in line]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
