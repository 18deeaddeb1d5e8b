"""A session as a worker knows it, and the generation it may be running. Plain records; the engine moves them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.messages import GenerationEvent
from server.pairs import Pair
from server.store.base import Finish, JournalEntry, Lease, Turn
from server.worker.runner import Voice
from server.worker.text import Standing

Emit = Callable[[GenerationEvent], None]


@dataclass
class Generation:
    """A running generation. `done` ends it: with None after the completed event, or with the error it failed with.

    `emit`, `listener` and `done` are those of whoever listens now; one who takes the stream up later replaces them.
    """

    id: str
    voice: Voice
    max_tokens: int
    prompt_tokens: int
    context_tokens: int
    """What the session held, prompt included, when the first token was sampled."""
    emit: Emit
    listener: int
    """The request that `emit` answers."""
    done: asyncio.Future[None]
    stays_at: int | None = None
    """The session's position, where the generation runs on a copy and leaves it."""
    record: Callable[[Sequence[int], Finish], JournalEntry] | None = None
    """Where it runs on a copy and its result is to be kept: the entry that does, from its tokens and its finish."""
    newest: float | None = None
    """When its newest token was sampled here."""
    sampled: int = 0
    tokens: list[int] = field(default_factory=list)
    """Those of the sampled ones that are remembered: all but an end token after raw text."""
    text: str = ""
    deltas: int = 0
    told: list[GenerationEvent] = field(default_factory=list)
    """Every event sent so far, for one who takes the stream up."""
    durable: asyncio.Future[str] | None = None
    """The commit of its newest token; events wait for it."""

    def tell(self, event: GenerationEvent) -> None:
        """Send an event, and keep it."""
        self.told.append(event)
        self.emit(event)


@dataclass
class Session:
    """One session, or a scratch copy of one (`lease` None) whose tokens are never journaled.

    Tokens [0, folded) are in the state; `pending` holds [folded, journaled) while the session is resident. `row` is None
    while it is not.
    """

    key: str
    tenant: str
    pair: Pair
    lease: Lease | None
    lease_until: float = 0.0
    """Until then, by the monotonic clock, nobody else can have acquired it; afterwards only the store knows."""
    journaled: int = 0
    open_text: str = ""
    open_tokens: int = 0
    turn: Turn = "none"
    folded: int = 0
    saved: int = 0
    row: int | None = None
    pending: deque[int] = field(default_factory=deque)
    echo: int = 0
    """How many of the first pending tokens were sampled here, and are no news to anybody."""
    generation: Generation | None = None
    served: int = 0
    queued_at: float | None = None
    """Since when it has waited for a row, by the monotonic clock; None where it does not."""
    arrived_at: float = 0.0
    """When it got its row."""
    users: int = 0
    """Requests that hold this object; it is not let go while there are any."""
    moving: bool = False
    """A row is being filled for it, or its state is being written out."""
    held: int = 0
    """Requests that are about to copy its state; it keeps its row while there are any."""
    failure: Exception | None = None
    """Why it was dropped: nothing can be begun on it any more."""
    touched: float = 0.0
    changed_since: float | None = None
    """When the oldest change that no snapshot covers came in."""
    save_again_at: float = 0.0
    """Not before then is a snapshot tried again that could not be written."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiters: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Every token taken in, those of the open end included."""
        return self.journaled + self.open_tokens

    @property
    def standing(self) -> Standing:
        """Where its text stands."""
        return Standing(begun=self.journaled > 0, open_text=self.open_text, turn=self.turn)

    @property
    def has_work(self) -> bool:
        """Whether the engine has something to do for it."""
        return self.folded < self.journaled or self.generation is not None or bool(self.waiters)

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this lasts a request holds the object, so that it is not let go."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    def check(self) -> None:
        """Raise what it was dropped with, if it was."""
        if self.failure is not None:
            raise self.failure

    def take(self, tokens: list[int]) -> None:
        """Journaled tokens wait to be folded. While not resident, they are read from the store on the way in."""
        self.journaled += len(tokens)
        if self.row is not None:
            self.pending.extend(tokens)

    def fed_back(self, count: int) -> int:
        """How many of the next `count` tokens, which are being fed, were sampled here."""
        own = min(self.echo, count)
        self.echo -= own
        return own

    def reached(self, target: int) -> asyncio.Future[None]:
        """Done once the session is resident and `target` tokens are folded."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            future.set_exception(self.failure)
        elif self.row is not None and self.folded >= target:
            future.set_result(None)
        else:
            self.waiters.append((target, future))
        return future

    def notify(self) -> None:
        """Wake those whose tokens are folded."""
        waiting = []
        for target, future in self.waiters:
            if future.done():
                continue
            if self.row is not None and self.folded >= target:
                future.set_result(None)
            else:
                waiting.append((target, future))
        self.waiters = waiting

    def fail(self, error: Exception) -> None:
        """End everything that waits for this session, or will."""
        self.failure = error
        waiters, self.waiters = self.waiters, []
        futures = [future for _, future in waiters]
        if self.generation is not None:
            futures.append(self.generation.done)
            self.generation = None
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # marks it as seen: nobody may be left to wait
