"""What leases write in Redis: journal entries, and the operations and generations that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from server.errors import Internal, OperationMismatch, PreconditionFailed, ServerError
from server.failpoints import failpoint
from server.store.base import (
    AlreadyApplied,
    Finish,
    GenerationRecord,
    JournalEntry,
    OperationRecord,
    other_history,
)
from server.store.redis_failures import FAILURES, unavailable
from server.store.redis_link import (
    Link,
    changed,
    encode_text,
    is_name,
    missing,
    stale,
    storable,
    wanted_etags,
)
from server.store.redis_records import new_tag, sealed_text
from server.store.redis_wire import Argument
from server.store.tokens import pack_tokens, unpack_tokens


class RedisJournal:
    """One method, one call of the store."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def journal(self, entries: Sequence[JournalEntry]) -> Sequence[Exception | str]:
        """Send all entries that can be written in one pipeline; an outcome for each."""
        failpoint("journal.before")
        outcomes: list[Any] = [None] * len(entries)
        calls: list[tuple[list[str], Sequence[Argument]]] = []
        sent: list[int] = []
        for place, entry in enumerate(entries):
            try:
                calls.append((self._keys(entry.lease.session_id), await self._prepared(entry)))
                sent.append(place)
            except ServerError as refusal:
                outcomes[place] = refusal
        answers = await self._link.run_each("journal", calls) if calls else ()
        for place, answer in zip(sent, answers, strict=True):
            outcomes[place] = _outcome(entries[place], answer)
        failpoint("journal.after")
        return outcomes

    async def operation(self, session_id: str, op_id: str) -> OperationRecord | None:
        """What an operation id stood for."""
        keys = self._link.keys
        status, *answer = await self._link.run(
            "operation",
            [keys.session(storable(session_id)), keys.operations(session_id), keys.operation_times(session_id)],
            encode_text(op_id, "operation id"),
            self._link.operation_ttl_seconds,
        )
        if status == b"missing":
            raise missing(session_id)
        return _known(op_id, answer[0]) if status == b"found" else None

    async def generation(self, generation_id: str) -> GenerationRecord | None:
        """A generation with all it has sampled."""
        keys = self._link.keys
        if not is_name(generation_id):
            return None
        name = await self._link.command("GET", keys.generation(generation_id))
        if name is None:
            return None
        session_id = name.decode()
        status, *answer = await self._link.run(
            "generation",
            [
                keys.session(session_id),
                keys.generations(session_id),
                keys.generation_times(session_id),
                keys.sampled(session_id),
            ],
            generation_id,
            self._link.operation_ttl_seconds,
        )
        if status != b"found":
            return None
        return await self._link.on_thread(lambda: self._told(session_id, generation_id, *answer))

    def _told(
        self, session_id: str, generation_id: str, tenant: bytes, begun: bytes, finish: bytes, sampled: Any
    ) -> GenerationRecord:
        who, sealer = (tenant.decode(), session_id), self._link.sealer
        start, prompt_tokens, request, first = msgpack.unpackb(begun)
        tokens = unpack_tokens(sealer.open(first, (*who, "sampled", generation_id)))
        for entry_id, sealed in sampled:
            tokens += unpack_tokens(sealer.open(sealed, (*who, "tokens", end_of(entry_id))))
        return GenerationRecord(
            id=generation_id,
            session_id=session_id,
            request=sealer.open(request, (*who, "request", generation_id)),
            start=start,
            prompt_tokens=prompt_tokens,
            tokens=tuple(tokens),
            finish=Finish(*msgpack.unpackb(finish)) if finish else None,
        )

    def _keys(self, session_id: str) -> list[str]:
        keys = self._link.keys
        storable(session_id)
        return [
            keys.session(session_id),
            keys.journal(session_id),
            keys.operations(session_id),
            keys.operation_times(session_id),
            keys.generations(session_id),
            keys.generation_times(session_id),
            keys.sampled(session_id),
        ]

    async def _prepared(self, entry: JournalEntry) -> Sequence[Argument]:
        """The arguments of an entry. Raises what is wrong with it whatever the session's state."""
        _check_shape(entry)
        try:
            tenant = await self._link.tenant_of(entry.lease.session_id)
            if entry.begins is not None:
                await self._find_generation_by(entry.begins)
        except FAILURES as error:
            raise unavailable(error) from error
        if not tenant:
            raise missing(entry.lease.session_id)
        return await self._arguments(entry, tenant)

    async def _find_generation_by(self, begun: GenerationRecord) -> None:
        """Before the generation is there, so that none is there that cannot be found. Long enough for one that goes on and on."""
        milliseconds = int(2 * self._link.operation_ttl_seconds * 1000) + 60_000
        await self._link.command("SET", self._link.keys.generation(begun.id), begun.session_id, "PX", milliseconds)

    async def _arguments(self, entry: JournalEntry, tenant: str) -> Sequence[Argument]:
        who, end = (tenant, entry.lease.session_id), entry.start + len(entry.tokens)
        sealed = await self._link.seal(pack_tokens(entry.tokens), (*who, "tokens", end)) if entry.tokens else b""
        return (
            entry.lease.fence,
            entry.start,
            end,
            sealed,
            "silent" if entry.silent else "",
            wanted_etags(entry.if_match),
            new_tag(),
            sealed_text(self._link.sealer, *who, end, entry.open_text),
            entry.open_tokens,
            entry.turn,
            self._link.operation_ttl_seconds,
            *_operation(entry.operation),
            *await self._begun(entry.begins, tenant),
            entry.sampled_by or "",
            _finish(entry.finish),
        )

    async def _begun(self, begun: GenerationRecord | None, tenant: str) -> Sequence[Argument]:
        if begun is None:
            return ("", "", "", "")
        who = (tenant, begun.session_id)
        request = await self._link.seal(begun.request, (*who, "request", begun.id))
        tokens = await self._link.seal(pack_tokens(begun.tokens), (*who, "sampled", begun.id))
        record: bytes = msgpack.packb((begun.start, begun.prompt_tokens, request, tokens))
        return (begun.id, begun.start, record, _finish(begun.finish))


def end_of(entry_id: bytes) -> int:
    """The position that an entry of a stream ends at."""
    return int(entry_id.partition(b"-")[0])


def mismatch(op_id: str) -> OperationMismatch:
    """The error for an operation id that stood for another request."""
    return OperationMismatch(f"Operation id {op_id!r} was used with another request; send a new id.", param="op_id")


def _check_shape(entry: JournalEntry) -> None:
    session_id = entry.lease.session_id
    if entry.silent and entry.tokens:
        raise Internal(f"A silent entry of session {session_id} brings {len(entry.tokens)} tokens; it must bring none")
    if entry.finish is not None and entry.sampled_by is None:
        raise Internal("An entry that finishes a generation must name it in `sampled_by`")
    if entry.begins is not None:
        if entry.begins.session_id != session_id:
            raise Internal(f"Generation {entry.begins.id!r} is of another session than {session_id!r}")
        if not is_name(entry.begins.id):
            raise Internal(f"{entry.begins.id!r} cannot be a generation's id")
    if entry.operation is not None:
        encode_text(entry.operation.op_id, "operation id")
    pack_tokens(entry.tokens)


def _operation(operation: OperationRecord | None) -> Sequence[Argument]:
    if operation is None:
        return ("", "", "")
    digest = operation.request_digest
    record: bytes = msgpack.packb((digest, operation.tokens, operation.position, operation.generation_id))
    return (operation.op_id, digest, record)


def _known(op_id: str, packed: bytes) -> OperationRecord:
    """From what `_operation` packed, and the ETag that the script put behind it."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(packed)
    (digest, tokens, position, generation_id), etag = unpacker
    return OperationRecord(op_id, digest, tokens, position, generation_id, etag)


def _finish(finish: Finish | None) -> bytes:
    packed: bytes = b"" if finish is None else msgpack.packb((finish.reason, finish.sampled, finish.position))
    return packed


def _outcome(entry: JournalEntry, answer: Any) -> Exception | str:
    if isinstance(answer, Exception):
        return unavailable(answer)
    status, *rest = answer
    return str(rest[0].decode()) if status == b"written" else _refusal(entry, status.decode(), rest)


def _refusal(entry: JournalEntry, status: str, rest: Sequence[bytes]) -> Exception:
    session_id = entry.lease.session_id
    op_id = entry.operation.op_id if entry.operation else ""
    match status:
        case "missing":
            return missing(session_id)
        case "stale":
            return stale(entry.lease, rest[0])
        case "applied":
            return AlreadyApplied(f"Operation {op_id!r} of session {session_id} is in the journal already")
        case "mismatch":
            return mismatch(op_id)
        case "changed":
            refusal: PreconditionFailed = changed(session_id, rest[0])
            return refusal
        case "begun":
            return Internal("There is a generation of this id already; make a new id")
        case "unknown":
            return Internal(f"Session {session_id} has no generation {entry.sampled_by!r} to go on with")
        case "ended":
            return Internal(f"Generation {entry.sampled_by!r} has ended; nothing can be added to it")
        case _:
            return other_history(session_id, int(rest[0]), entry.start)
