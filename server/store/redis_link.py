"""What all parts of the Redis store share: connections, scripts, keys, the sealer, and who a session belongs to."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from redis.exceptions import ConnectionError, NoScriptError

from server.errors import InvalidRequest, NotFound, PreconditionFailed, StaleLease, StoreUnavailable
from server.store.base import Durability, Lease
from server.store.redis_calls import Calls
from server.store.redis_health import UnfitRedis, examine
from server.store.redis_keys import Keys
from server.store.redis_options import RedisOptions
from server.store.redis_scripts import Script, script
from server.store.redis_wire import Argument, Command, Wire, blob_wire, control_wire, waiting_wire
from server.store.sealing import About, Sealer
from server.store.threads import WorkThreads

Result = TypeVar("Result")

_LARGE_BYTES = 1 << 15
"""Sealing more than this would hold up the event loop."""
_TENANTS = 65_536
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ETAG = re.compile(r"\d+-[0-9a-f]{8}")


class Link:
    """See above. `clock` stands for Redis's own time in tests."""

    def __init__(
        self,
        options: RedisOptions,
        sealer: Sealer,
        clock: Callable[[], float] | None,
        operation_ttl_seconds: float,
        generations: int,
    ) -> None:
        self.options, self.sealer, self.generations = options, sealer, generations
        self.operation_ttl_seconds = operation_ttl_seconds
        self.keys = Keys(options.prefix)
        self.durability: Durability | None = None
        self._clock = clock
        self._wires: _Wires | None = None
        self._tenants: OrderedDict[str, str] = OrderedDict()
        self._threads = WorkThreads("store-sealing", count=2)
        self._calls = Calls(self._ready)
        self._examining = asyncio.Lock()

    async def open(self) -> None:
        """Connect. Raises `UnfitRedis` for a Redis that must not be used; one that is out of reach may come later."""
        if self._wires is None:
            self._wires = _Wires(control_wire(self.options), blob_wire(self.options), waiting_wire(self.options))
        self._calls.open()
        try:
            await self.call(_nothing)
        except UnfitRedis:
            await self.close()
            raise
        except StoreUnavailable as error:
            structlog.get_logger("server.store").warning("redis is not available yet", reason=error.message)

    async def close(self) -> None:
        """Finish what was begun and let go."""
        await self._calls.close()
        if self._wires is not None:
            wires, self._wires = self._wires, None
            for wire in (wires.control, wires.blobs, wires.waiting):
                await wire.close()
            await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    async def call(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Do work without snapshots: a caller that is cancelled does not end it, `timeout_seconds` do."""
        return await self._calls.run(work, self.options.timeout_seconds)

    async def call_with_blobs(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Do work with snapshots: each command without one still has `timeout_seconds` only."""
        seconds = 2 * self.options.blob_timeout_seconds + 2 * self.options.timeout_seconds
        return await self._calls.run(work, seconds)

    async def call_waiting(self, work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        """Do work that waits for up to `seconds`, and ends with its caller."""
        return await self._calls.wait(work, seconds + self.options.timeout_seconds)

    async def run(self, name: str, keys: Sequence[str], *arguments: Argument) -> list[Any]:
        """The answer of a script; the clock is put before `arguments`. One that only reads is sent again when its connection was
        lost."""
        wanted = script(name)
        try:
            return await self._run(wanted, keys, arguments)
        except ConnectionError:
            if not wanted.reads:
                raise
            return await self._run(wanted, keys, arguments)

    async def run_each(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> Sequence[Any]:
        """Many calls of one script in a pipeline: for each its answer, or the failure in its place."""
        wanted = script(name)
        async with asyncio.timeout(self.options.timeout_seconds):
            outcomes = list(await self._control.pipeline([self._command(wanted, *call) for call in calls]))
        unknown = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, NoScriptError)]
        if unknown:  # of these nothing was carried out
            commands = [self._command(wanted, *calls[place], by_source=True) for place in unknown]
            async with asyncio.timeout(self.options.timeout_seconds):
                for place, outcome in zip(unknown, await self._control.pipeline(commands), strict=True):
                    outcomes[place] = outcome
        return outcomes

    async def command(self, *command: Argument) -> Any:
        """The answer of a plain command."""
        async with asyncio.timeout(self.options.timeout_seconds):
            return await self._control.command(*command)

    async def blob_command(self, *command: Argument) -> Any:
        """The answer of a command that carries a snapshot."""
        async with asyncio.timeout(self.options.blob_timeout_seconds):
            return await self._opened.blobs.command(*command)

    async def waiting_command(self, *command: Argument) -> Any:
        """The answer of a command that waits."""
        return await self._opened.waiting.command(*command)

    async def beat(self) -> None:
        """A small write on every primary."""
        primaries = len(await self._control.everywhere("PING"))
        # Sixteen keys a primary miss one of them about once in ten million.
        count = 1 if primaries == 1 else 16 * primaries
        for outcome in await self.run_each("beat", [((self.keys.heartbeat(number),), ()) for number in range(count)]):
            if isinstance(outcome, Exception):
                raise outcome

    async def seal(self, content: bytes, about: About) -> bytes:
        """Seal, on a thread if that takes long."""
        if len(content) < _LARGE_BYTES:
            return self.sealer.seal(content, about)
        return await self._threads.run(lambda: self.sealer.seal(content, about))

    async def on_thread(self, work: Callable[[], Result]) -> Result:
        """Do what computes for long."""
        return await self._threads.run(work)

    async def tenant_of(self, session_id: str) -> str:
        """Whose session it is, or "" when it is not there: the names of what is sealed begin with it."""
        if session_id not in self._tenants:
            tenant = await self.command("HGET", self.keys.session(session_id), "tenant")
            if tenant is None:
                return ""
            self.remember_tenant(session_id, tenant.decode())
        self._tenants.move_to_end(session_id)
        return self._tenants[session_id]

    def remember_tenant(self, session_id: str, tenant: str) -> None:
        """Spare the next question."""
        self._tenants[session_id] = tenant
        if len(self._tenants) > _TENANTS:
            self._tenants.popitem(last=False)

    @property
    def _opened(self) -> _Wires:
        if self._wires is None:
            raise StoreUnavailable("The store is not open. Try again when the server is ready.")
        return self._wires

    @property
    def _control(self) -> Wire:
        return self._opened.control

    async def _ready(self) -> None:
        """Before anything is asked of a Redis for the first time, it is looked at."""
        if self.durability is None:
            async with self._examining:
                if self.durability is None:
                    self.durability = await examine(self._control)

    async def _run(self, wanted: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Any]:
        async with asyncio.timeout(self.options.timeout_seconds):
            try:
                answer: list[Any] = await self._control.command(*self._command(wanted, keys, arguments))
            except NoScriptError:
                command = self._command(wanted, keys, arguments, by_source=True)
                answer = await self._control.command(*command)
        return answer

    def _command(
        self, wanted: Script, keys: Sequence[str], arguments: Sequence[Argument], *, by_source: bool = False
    ) -> Command:
        clock = "" if self._clock is None else repr(self._clock())
        head = ("EVAL", wanted.source) if by_source else ("EVALSHA", wanted.sha)
        return (*head, len(keys), *keys, clock, *arguments)


@dataclass(frozen=True)
class _Wires:
    control: Wire
    blobs: Wire
    waiting: Wire


async def _nothing() -> None:
    """The examination before it is all."""


def missing(session_id: str) -> NotFound:
    """The error for a session that was never made, is another tenant's, was deleted, or has expired."""
    return NotFound(f"There is no session {session_id!r}. It may have been deleted or have expired.")


def storable(session_id: str) -> str:
    """`session_id` itself, or `NotFound`: one from outside may be anything, even part of another key."""
    if not _ID.fullmatch(session_id):
        raise missing(session_id)
    return session_id


def is_name(text: str) -> bool:
    """Whether `text` may be an id that keys and fields are made of."""
    return _ID.fullmatch(text) is not None


def fence_step() -> int:
    """How far a fence goes beyond the least it must be: two histories of one store, of which one lost writes, differ in it."""
    return secrets.randbelow(1_000_000)


def stale(lease: Lease, newest: bytes) -> StaleLease:
    """The error for a lease that is not the newest."""
    return StaleLease(
        f"Another worker has taken over session {lease.session_id} "
        f"(fence {newest.decode()}, not {lease.fence}); try again."
    )


def changed(session_id: str, etag: bytes) -> PreconditionFailed:
    """The error for an ETag that is not the newest."""
    return PreconditionFailed(
        f"Session {session_id} has changed since: its ETag is {etag.decode()} now. Read it again and decide anew."
    )


def encode_text(text: str, what: str) -> bytes:
    """`text` in UTF-8, or `InvalidRequest` when it has no such form and so could not be stored."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The {what} holds half of a surrogate pair; send valid Unicode.") from error


def wanted_etags(if_match: frozenset[str] | None) -> str:
    """ETags as the scripts compare them. What no session's ETag can be is left out."""
    if if_match is None:
        return "any"
    return "\n" + "".join(f"{etag}\n" for etag in if_match if _ETAG.fullmatch(etag))
