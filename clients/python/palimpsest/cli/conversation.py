"""Turns of a chat over the WebSocket: cancelling, and coming back after the server was away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from palimpsest.errors import ConnectionFailed, PalimpsestError, SocketClosed, Unavailable
from palimpsest.retry import RetryPolicy
from palimpsest.session import SessionHandle
from palimpsest.types import Generation, Message, Sampling
from palimpsest.websocket import SessionSocket, SocketGeneration


class AnswerBroken(Exception):
    """The connection broke after the question was stored: the answer is lost. The socket is open again."""


class Conversation:
    """One session's turns. Use as a context manager; the socket is opened when it is needed.

    `write` gets the answer's text as it comes, `notice` what happens around it.
    """

    def __init__(
        self,
        handle: SessionHandle,
        sampling: Sampling,
        *,
        write: Callable[[str], None],
        notice: Callable[[str], None],
        patience: float = 60.0,
    ) -> None:
        self._handle = handle
        self._sampling = sampling
        self._write = write
        self._notice = notice
        self._patience = patience
        self._socket: SessionSocket | None = None
        self._position = 0

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def turn(self, text: str) -> Generation:
        """Say `text` and write the answer. Ctrl-C stops the answer; a second Ctrl-C raises KeyboardInterrupt.

        After a broken connection the question is asked again only if the session's position shows that it was
        not stored. Raises `AnswerBroken` when it was.
        """
        message: Message = {"role": "user", "content": text}
        while True:
            socket = self.connect()
            before = self._position
            generation = socket.generate(messages=[message], **self._sampling)
            try:
                return self._answer(generation)
            except SocketClosed as error:
                if not error.reconnect:
                    raise
                self._notice("(the connection was lost; connecting again)")
            self.connect()
            if self._position != before:
                raise AnswerBroken

    def _answer(self, generation: SocketGeneration) -> Generation:
        with cancelled_by_interrupt(generation):
            for delta in generation:
                self._write(delta.text)
        if generation.result is None:
            raise AssertionError("a generation ended without its result")
        self._position = generation.result.position
        return generation.result

    def connect(self) -> SessionSocket:
        """The open socket, opened again if it was lost, with as much patience as there is."""
        if self._socket is not None:
            if not self._socket.closed:
                return self._socket
            self._socket.close()
        policy = RetryPolicy()
        deadline = time.monotonic() + self._patience
        failures = 0
        while True:
            try:
                self._socket = self._handle.connect().__enter__()
                break
            except (ConnectionFailed, SocketClosed, Unavailable) as error:
                failures += 1
                delay = policy.delay(failures)
                if not _passing(error) or time.monotonic() + delay > deadline:
                    raise
            time.sleep(delay)
        if self._socket.session is not None:
            self._position = self._socket.session.position
        return self._socket


def _passing(error: PalimpsestError) -> bool:
    """Whether it may be over soon."""
    return error.reconnect if isinstance(error, SocketClosed) else True


@contextmanager
def cancelled_by_interrupt(generation: SocketGeneration) -> Iterator[None]:
    """Within it, the first Ctrl-C cancels the generation; the second is a KeyboardInterrupt again."""
    stoppers: list[threading.Thread] = []

    def cancel() -> None:
        # A connection that is gone has cancelled it already.
        with suppress(PalimpsestError):
            generation.cancel()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if stoppers:
            raise KeyboardInterrupt
        # Its own thread: the main one may hold the socket's locks at this very moment.
        stoppers.append(threading.Thread(target=cancel))
        stoppers[0].start()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        for stopper in stoppers:
            stopper.join()
