"""What the processes of one server print."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from concurrent.futures import Future
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

_LISTENING = re.compile(rb"^Listening on (http://\S+)")


class ServerOutput:
    """Copies what a server's processes print to a file, and picks out what has to be known.

    All of them write into one pipe: when it ends, none of them is left.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        assert isinstance(process.stdout, BufferedReader)
        self.url: Future[str] = Future()
        self.ended = threading.Event()
        self.workers: list[int] = []
        """Process ids of the workers that became ready, newest last."""
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
                self.workers.append(int(json.loads(line)["pid"]))
