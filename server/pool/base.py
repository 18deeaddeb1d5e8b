"""How the service reaches the workers, whatever they run on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from server.messages import (
    Answer,
    Append,
    Cancel,
    Check,
    Family,
    Forget,
    Generate,
    GenerationEvent,
    Inspect,
    Ready,
    Resume,
)


class Pool(Protocol):
    """Workers behind one door. A session's requests go to one worker, chosen by rendezvous hash."""

    async def start(self) -> None:
        """Start the workers and return at once; `ready` turns true when one has loaded its model."""

    async def stop(self, drain_seconds: float) -> None:
        """Drain every worker, then end it."""

    @property
    def ready(self) -> bool:
        """Whether every worker takes requests."""

    def describe(self) -> Ready | None:
        """What the workers serve, once one of them has loaded it."""

    async def call(self, request: Append | Cancel | Inspect | Check | Forget) -> Answer:
        """Send one request and wait for its answer. Raises the `ServerError` it failed with; `WorkerLost` when
        the worker died first."""

    async def measure(self, seconds: float) -> Mapping[int, Sequence[Family]]:
        """The figures of every worker that gives them within `seconds`, by its number."""

    def stream(self, request: Generate | Resume) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a generation. Closing it early interrupts the generation."""
