"""A pool that plays what a test wrote for it, and a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from server.app import create_app
from server.errors import Draining, ServerError
from server.messages import (
    Answer,
    Append,
    Appended,
    Cancel,
    Check,
    Done,
    Family,
    Forget,
    Generate,
    GenerationCompleted,
    GenerationDelta,
    GenerationEvent,
    GenerationStarted,
    Inspect,
    Inspected,
    LayerMemory,
    Offered,
    Ready,
    Remembered,
    Resume,
)
from server.serving import DrainingServer, create_server
from server.settings import Settings
from server.store.base import Finish, GenerationRecord, JournalEntry, Store

OFFERED = Offered(
    model="tiny/scripted",
    model_fingerprint="00",
    memory="slots",
    state_bytes=4096,
    trained_context=512,
    parameters=1000,
)
OTHERS = (
    OFFERED.model_copy(update={"memory": "window", "state_bytes": 2048}),
    OFFERED.model_copy(update={"model": "other/scripted", "model_fingerprint": "01", "memory": "infini"}),
    OFFERED.model_copy(update={"model": "other/scripted", "model_fingerprint": "01", "memory": "window"}),
)


def offering(*offers: Offered) -> Ready:
    """A worker that serves these."""
    return Ready(worker=0, offers=offers, places=1, device="cpu", dtype="float32", kernels="torch")


SERVED = offering(OFFERED)
MANY = offering(OFFERED, *OTHERS)
"""Several memories of the default model, and another model, which is not offered with the default memory."""


@dataclass
class ScriptedPool:
    """Counts a character as a token. A generation samples `deltas`, each after `gate` lets it, and none of them twice.

    With a `store`, generations are recorded there.
    """

    described: Ready | None = SERVED
    measured: dict[int, tuple[Family, ...]] = field(default_factory=dict)
    deltas: list[str] = field(default_factory=lambda: ["Hello", ", ", "world."])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    append_gate: asyncio.Event = field(default_factory=asyncio.Event)
    appended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    started: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    fail_append_at: Callable[[int], ServerError | None] = lambda _count: None
    fail_before: Exception | None = None
    fail_after_deltas: Exception | None = None
    fail_check: ServerError | None = None
    cancel_found: bool = True
    store: Store | None = None
    requests: list[Append | Generate | Resume | Cancel | Inspect | Check | Forget] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    seen: dict[tuple[str, str], Appended] = field(default_factory=dict)
    begun: dict[tuple[str, str], str] = field(default_factory=dict)
    sampled: dict[str, list[str]] = field(default_factory=dict)
    sent: int = 0
    stopped_with: float | None = None

    def __post_init__(self) -> None:
        self.gate.set()
        self.append_gate.set()

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, drain_seconds: float) -> None:
        """Remember how long it was given, and break off what still waits."""
        self.stopped_with = drain_seconds
        self.gate.set()

    @property
    def ready(self) -> bool:
        """Whether it describes itself."""
        return self.described is not None

    def describe(self) -> Ready | None:
        """As the test set it."""
        return self.described

    async def measure(self, seconds: float) -> Mapping[int, Sequence[Family]]:
        """As the test set them."""
        return self.measured

    @property
    def appends(self) -> list[Append]:
        """The appends, in order."""
        return [request for request in self.requests if isinstance(request, Append)]

    async def call(self, request: Append | Cancel | Inspect | Check | Forget) -> Answer:
        """Answer at once, or when `append_gate` opens."""
        self.requests.append(request)
        match request:
            case Append():
                await self.append_gate.wait()
                return self._append(request)
            case Cancel():
                self.cancelled.add(request.generation_id)
                self.gate.set()
                return Done(found=self.cancel_found)
            case Check():
                if self.fail_check:
                    raise self.fail_check
                return Done()
            case Inspect():
                return self._inspect(request)
            case Forget():
                return Done()

    def _append(self, request: Append) -> Appended:
        failure = self.fail_append_at(len(self.appends))
        if failure:
            raise failure
        key = (request.session_id, request.op_id or "")
        if key in self.seen:
            return self.seen[key].model_copy(update={"applied": False})
        texts = [request.text] if request.text else [message.content for message in request.messages or ()]
        tokens = sum(map(len, texts))
        position = self.positions.get(request.session_id, 0) + tokens
        self.positions[request.session_id] = position
        answer = Appended(
            op_id=request.op_id,
            tokens=tokens,
            position=position,
            status="journaled" if request.wait == "journal" else "remembered",
            applied=True,
            state_bytes=4096,
            etag=f"{len(self.appends)}-0123abcd",
        )
        self.seen[key] = answer.model_copy(update={"etag": None})
        self.appended.release()
        return answer

    def _inspect(self, request: Inspect) -> Inspected:
        return Inspected(
            memory="slots",
            position=self.positions.get(request.session_id, 0),
            state_bytes=4096,
            folds=2,
            local_tokens=7,
            layers=(LayerMemory(layer=3, kv_heads=(1,), slots=8, used=5),),
            remembered=(Remembered(position=4, text="the gate"),),
        )

    async def stream(self, request: Generate | Resume) -> AsyncGenerator[GenerationEvent, None]:
        """Play the script."""
        self.requests.append(request)
        self.started.set()
        try:
            if self.fail_before:
                raise self.fail_before
            if isinstance(request, Resume):
                name, after = request.generation_id, request.after
            else:
                name, after = await self._begin(request), -1
            async for number, event in self._play(name):
                if number > after:
                    yield event
        finally:
            self.closed.set()

    async def _begin(self, request: Generate) -> str:
        key = (request.session_id, request.op_id or request.generation_id)
        name = self.begun.setdefault(key, request.generation_id)
        if self.store and request.remember and name == request.generation_id:
            await record_generation(self.store, request.session_id, name)
        return name

    async def _play(self, name: str) -> AsyncGenerator[tuple[int, GenerationEvent], None]:
        yield 0, GenerationStarted(generation_id=name, prompt_tokens=3)
        told = self.sampled.setdefault(name, [])
        for index, delta in enumerate(self.deltas):
            if index == len(told):
                await self.gate.wait()
                if name in self.cancelled:
                    break
                if self.stopped_with is not None:
                    raise Draining("the server is shutting down")
                told.append(delta)
                self.sent += 1
            yield index + 1, GenerationDelta(generation_id=name, index=index, text=delta)
        if self.fail_after_deltas:
            raise self.fail_after_deltas
        yield (
            len(told) + 1,
            GenerationCompleted(
                generation_id=name,
                text="".join(told),
                finish_reason="cancelled" if name in self.cancelled else "stop",
                prompt_tokens=3,
                completion_tokens=len(told),
                context_tokens=10,
                position=13,
                etag="9-89abcdef",
            ),
        )


async def record_generation(
    store: Store, session_id: str, generation_id: str, finish: Finish | None = None
) -> GenerationRecord:
    """What a worker leaves in the store of a generation; the session stays as it is."""
    head = await store.head(session_id)
    record = GenerationRecord(
        id=generation_id, session_id=session_id, request=b"", start=head.journaled, prompt_tokens=3, finish=finish
    )
    lease = await store.acquire(session_id, "tests/0/only", 60)
    entry = JournalEntry(
        lease, head.journaled, (), head.open_text, head.open_tokens, head.turn, begins=record, silent=True
    )
    outcomes = await store.journal([entry])
    assert isinstance(outcomes[0], str), outcomes
    await store.release(lease)
    return record


class RunningServer:
    """The app under a real uvicorn, on a free port, in the test's own loop."""

    def __init__(self, settings: Settings, pool: ScriptedPool, store: Store) -> None:
        self.app = create_app(settings, pool, store)
        self.server: DrainingServer = create_server(settings, self.app, self._listens)
        self.url = ""
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _listens(self, url: str) -> None:
        self.url = url
        self._listening.set()

    @property
    def websocket_url(self) -> str:
        """The same address for WebSockets."""
        return self.url.replace("http://", "ws://")

    async def start(self) -> None:
        """Return when it listens."""
        self._task = asyncio.create_task(self.server.serve())
        async with asyncio.timeout(10):
            await self._listening.wait()

    def terminate(self) -> None:
        """What SIGTERM does."""
        self.server.should_exit = True

    async def stop(self) -> None:
        """Shut down and wait until it has."""
        self.terminate()
        assert self._task
        async with asyncio.timeout(20):
            await self._task
