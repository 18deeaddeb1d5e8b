"""Turns of a chat over the WebSocket, which Ctrl-C stops and restarts of the server do not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from palimpsest.errors import SocketClosed
from palimpsest.session import SessionHandle
from palimpsest.socket_generation import SocketGeneration
from palimpsest.types import Generation, Message, Sampling

RECONNECTS = 12
"""Attempts in a row, about a minute: a server that restarts has to load its model."""


class Conversation:
    """One session's turns. Use as a context manager; the socket is opened with the first of them.

    `write` gets the answer's text as it comes, `notice` what happens around it.
    """

    def __init__(
        self,
        handle: SessionHandle,
        sampling: Sampling,
        *,
        write: Callable[[str], None],
        notice: Callable[[str], None],
    ) -> None:
        self._socket = handle.connect(retries=RECONNECTS, on_lost=self._lost)
        self._sampling = sampling
        self._write = write
        self._notice = notice
        self._answering = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def turn(self, text: str) -> Generation:
        """Say `text` and write the answer. Ctrl-C stops the answer; a second Ctrl-C raises KeyboardInterrupt.

        When the server goes away in the middle of it, the answer goes on where it stood once the server is back.
        """
        if self._socket.session is None:
            self._socket.__enter__()
        message: Message = {"role": "user", "content": text}
        generation = self._socket.generate(messages=[message], **self._sampling)
        try:
            with cancelled_by_interrupt(generation):
                for delta in generation:
                    self._answering = True
                    self._write(delta.text)
        finally:
            self._answering = False
        if generation.result is None:
            raise AssertionError("a generation ended without its result")
        return generation.result

    def _lost(self, _: SocketClosed) -> None:
        # On a line of its own, which is where the cursor is unless a part of the answer was written.
        self._notice(("\n" if self._answering else "") + "(the connection was lost; connecting again)")


@contextmanager
def cancelled_by_interrupt(generation: SocketGeneration) -> Iterator[None]:
    """Within it, the first Ctrl-C cancels the generation; the second is a KeyboardInterrupt again."""
    stoppers: list[threading.Thread] = []

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if stoppers:
            raise KeyboardInterrupt
        # Its own thread: the main one may hold the socket's locks at this very moment.
        stoppers.append(threading.Thread(target=generation.cancel))
        stoppers[0].start()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        for stopper in stoppers:
            stopper.join()
