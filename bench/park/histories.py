"""Sessions of given lengths over one text, read by the worker's own runner and kept in a folder."""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from server.errors import StateRefused
from server.worker.runner import Feed, Runner
from server.worker.text import Standing, TextReader

CHUNK = 512
_REPORT_TOKENS = 32_768

Say = Callable[[str], None]


def repeated(reader: TextReader, text: str, count: int) -> list[int]:
    """The tokens of `text`, over and over until there are `count`."""
    tokens = reader.prompt(Standing(begun=False, open_text="", turn="none"), text, None).tokens
    again = read_on(reader, text)
    while len(tokens) < count:
        tokens += again
    return tokens[:count]


def read_on(reader: TextReader, text: str) -> list[int]:
    """The tokens of `text` behind other text."""
    return reader.prompt(Standing(begun=True, open_text="", turn="none"), text, None).tokens


class Histories:
    """Saved states by length. A state that another model or memory made is refused by its own fingerprint, and read anew.

    `tokens` has at least as many as the longest history asked for.
    """

    def __init__(self, runner: Runner, tokens: Sequence[int], folder: Path, say: Say) -> None:
        self._runner, self._tokens, self._folder, self._say = runner, tokens, folder, say
        folder.mkdir(parents=True, exist_ok=True)

    def state(self, length: int) -> bytes:
        """The saved state behind the first `length` tokens; from the folder if it is there, else read now."""
        begun = next((known for known in self._known(length) if self._restore(known)), 0)
        if begun == 0:
            self._runner.restore(0, None)
        self._read(begun, length)
        _, data = self._runner.save(0)
        if begun < length:
            self._keep(length, data)
        return data

    def _read(self, begin: int, end: int) -> None:
        started = time.perf_counter()
        for place in range(begin, end, CHUNK):
            self._runner.run([Feed("history", 0, self._tokens[place : min(end, place + CHUNK)], None)])
            read = place + CHUNK - begin
            if read % _REPORT_TOKENS == 0:
                self._say(
                    f"read {place + CHUNK:,} of {end:,} tokens, {read / (time.perf_counter() - started):,.0f} a second"
                )

    def _restore(self, length: int) -> bool:
        try:
            return self._runner.restore(0, self._path(length).read_bytes()) == length
        except (OSError, StateRefused):
            return False

    def _known(self, length: int) -> list[int]:
        """Lengths up to `length` that the folder has states of, the longest first."""
        names = (path.stem.partition("-")[0] for path in self._folder.glob("*.state"))
        known = {int(name) for name in names if name.isdecimal()}
        return sorted((one for one in known if one <= length), reverse=True)

    def _keep(self, length: int, data: bytes) -> None:
        path = self._path(length)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)

    def _path(self, length: int) -> Path:
        # The name holds what was read; what read it is in the state itself.
        digest = hashlib.sha256(array("I", self._tokens[:length])).hexdigest()[:16]
        return self._folder / f"{length}-{digest}.state"
