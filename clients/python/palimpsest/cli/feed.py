"""Feeding a text to a session piece by piece, through restarts of the server, each piece applied once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from palimpsest.cli.source import Source
from palimpsest.cli.state import IngestProgress
from palimpsest.errors import ApiError, PalimpsestError
from palimpsest.retry import Repeat, RetryPolicy, may_repeat
from palimpsest.session import SessionHandle
from palimpsest.types import Segment


@dataclass(frozen=True)
class Fed:
    """How far a text has come. `offset` counts characters acknowledged, `tokens` those of this run."""

    offset: int
    tokens: int
    position: int | None


class Feed:
    """Appends with patience: what may be repeated is, for `patience` seconds after it first failed."""

    def __init__(self, handle: SessionHandle, server: str, patience: float) -> None:
        self.handle = handle
        self._server = server
        self._patience = patience
        self._policy = RetryPolicy()

    def run(self, source: Source) -> Iterator[Fed]:
        """Send what is not known to be acknowledged; yields after every piece, first where it begins."""
        progress = IngestProgress(self._server, self.handle.id, source.digest)
        start = progress.load()
        tokens = 0
        yield Fed(start, tokens, None)
        for offset, piece in source.pieces(start):
            segment = self._append(piece, source.op_id(offset))
            progress.save(offset + len(piece))
            tokens += segment.tokens
            yield Fed(offset + len(piece), tokens, segment.position)

    def _append(self, piece: str, op_id: str) -> Segment:
        failures = 0
        first_failure = 0.0
        while True:
            try:
                return self.handle.append(piece, op_id=op_id)
            except PalimpsestError as error:
                failures += 1
                first_failure = first_failure or time.monotonic()
                asked = error.retry_after if isinstance(error, ApiError) else None
                delay = self._policy.delay(failures, asked)
                late = time.monotonic() + delay > first_failure + self._patience
                if late or not may_repeat(error, Repeat.ALWAYS):
                    raise
            time.sleep(delay)
