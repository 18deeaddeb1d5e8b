"""Session records in Redis: made, read, listed, changed, deleted; and claims of operations that make sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from server.errors import Internal, InvalidRequest, NotFound, StoreUnavailable
from server.store.base import Claim, Page, SessionRecord
from server.store.redis_journal import mismatch
from server.store.redis_link import Link, changed, encode_text, fence_step, is_name, missing, storable, wanted_etags
from server.store.redis_records import (
    Pointer,
    fields_for,
    fields_of,
    new_tag,
    pointers_of,
    record_from,
    sealed_metadata,
)

_ROUNDS = 5
"""Somebody else may have changed a session's pointers between a question and the script that counts."""
_DANGLING_SECONDS = 60.0
_EARLY_SECONDS = 60.0


class RedisSessions:
    """One method, one call of the store; but for `add` and `remove`, parts of others' calls."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Add a session without a past."""
        if record.journaled:
            raise Internal(f"Session {record.id} cannot begin with {record.journaled} tokens that no journal holds")
        added, _ = await self.add(record)
        return added

    async def add(
        self,
        record: SessionRecord,
        *,
        tail: bytes = b"",
        pointers: Sequence[Pointer] = (),
        staged: str | None = None,
        deadline: str = "",
    ) -> tuple[SessionRecord, bool]:
        """Add a session with all it begins with, unless it is there; and whether it was added.

        `tail` is sealed; `staged` is the key of a snapshot that only this session will point to. After `deadline`, in Redis's
        time, it is too late. Raises `Internal` for an id that is no id, or is another tenant's.
        """
        if not is_name(record.id):
            raise Internal(f"{record.id!r} cannot be a session id: only letters, digits, _ and - are allowed")
        await self.note(record, early_seconds=_EARLY_SECONDS)
        fields = fields_for(self._link.sealer, record)
        for name, pointer in zip(("current", "previous"), pointers, strict=False):
            fields += [name, str(pointer)]
        fields += ["snapshots", pointers[0].number if staged else 0]
        keys = [self._link.keys.session(record.id), self._link.keys.journal(record.id), *([staged] if staged else [])]
        ttl = "" if record.ttl_seconds is None else record.ttl_seconds
        for _ in range(_ROUNDS):
            status, *answer = await self._link.run(
                "create", keys, deadline, ttl, record.journaled, tail, fence_step(), *fields
            )
            if status == b"late":
                raise StoreUnavailable(f"Adding session {record.id} took too long. Try again.")
            if status != b"expired":
                break
            await self.remove(record.id)
        found = record_from(self._link.sealer, record.id, fields_of(answer[0]))
        if found.tenant != record.tenant:
            raise Internal(f"There is a session {record.id} already; make a new id")
        await self.note(found)
        return found, status == b"created"

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """The newest record of a tenant's session."""
        record = await self.head(session_id)
        if record.tenant != tenant:
            raise missing(session_id)
        return record

    async def head(self, session_id: str) -> SessionRecord:
        """The newest record."""
        status, *answer = await self._link.run("read", [self._link.keys.session(storable(session_id))])
        if status == b"missing":
            raise missing(session_id)
        return record_from(self._link.sealer, session_id, fields_of(answer[0]))

    async def page(self, tenant: str, limit: int, after: str | None, order: Literal["asc", "desc"]) -> Page:
        """Up to `limit` of a tenant's sessions behind the session `after`."""
        last, moment = "", "0"
        if after is not None:
            try:
                last, moment = after, repr((await self.get(tenant, after)).created_at)
            except NotFound as error:
                raise InvalidRequest(f"{error.message} List again from the start.", param="after") from error
        records: list[SessionRecord] = []
        dangling: list[tuple[str, float]] = []
        index = self._link.keys.index(tenant)
        while len(records) <= limit:
            found = await self._link.run("page", [index], order, limit + 1 - len(records), last, moment)
            entries = [(name.decode(), float(score)) for name, score in zip(found[::2], found[1::2], strict=True)]
            if not entries:
                break
            last, moment = entries[-1][0], repr(entries[-1][1])
            there = await self._records(tenant, [name for name, _ in entries])
            records += there.values()
            dangling += [entry for entry in entries if entry[0] not in there]
        await self._clean(index, dangling)
        return Page(tuple(records[:limit]), len(records) > limit)

    async def update(
        self,
        tenant: str,
        session_id: str,
        metadata: Mapping[str, str] | None,
        ttl_seconds: int | Literal["keep"] | None,
        if_match: frozenset[str] | None,
    ) -> SessionRecord:
        """Change metadata or lifetime; what changes neither leaves the version as it is."""
        key = self._link.keys.session(storable(session_id))
        sealer = self._link.sealer
        sealed = b"" if metadata is None else sealed_metadata(sealer, tenant, session_id, metadata)
        if isinstance(ttl_seconds, int):
            await self._expect(session_id, ttl_seconds + _EARLY_SECONDS)
        status, *answer = await self._link.run(
            "update",
            [key],
            encode_text(tenant, "tenant"),
            wanted_etags(if_match),
            new_tag(),
            sealed,
            "" if ttl_seconds is None else ttl_seconds,
        )
        if status == b"missing":
            raise missing(session_id)
        if status == b"changed":
            raise changed(session_id, answer[0])
        if isinstance(ttl_seconds, int):
            await self._expect(session_id, ttl_seconds)
        return record_from(sealer, session_id, fields_of(answer[0]))

    async def delete(self, tenant: str, session_id: str, if_match: frozenset[str] | None) -> None:
        """Remove a tenant's session."""
        await self.remove(storable(session_id), encode_text(tenant, "tenant"), wanted_etags(if_match))

    async def remove(self, session_id: str, tenant: bytes = b"", etags: str = "any") -> bool:
        """Remove a session: without `tenant` only if it has expired. Whether it went."""
        for _ in range(_ROUNDS):
            pointers = await self._pointers(session_id)
            status, *answer = await self._delete(session_id, tenant, etags, pointers)
            if status == b"deleted":
                await self._forget(session_id, answer[0].decode(), answer[1], pointers)
                return True
            if status == b"changed":
                raise changed(session_id, answer[0])
            if status == b"missing" and tenant:
                raise missing(session_id)
            if status != b"moved":
                return False
        raise StoreUnavailable(f"Session {session_id} changes too fast to be deleted. Try again.")

    async def unpin(self, session_id: str, pointer: Pointer) -> None:
        """Say that the session does not point there any more; the snapshot goes if nobody else does."""
        keys = self._link.keys
        foreign = session_id if pointer.origin != session_id else ""
        await self._link.run("unpin", [keys.pins(pointer.origin), pointer.key, keys.session(pointer.origin)], foreign)

    async def note(self, record: SessionRecord, early_seconds: float = 0.0) -> None:
        """Put a session on the lists that lie elsewhere: before it is there, so that none is there unlisted; and behind, as a
        sweep may have taken it off for one that never came to be."""
        if record.ttl_seconds is not None:
            await self._expect(record.id, record.ttl_seconds + early_seconds)
        await self._link.command("ZADD", self._link.keys.index(record.tenant), repr(record.created_at), record.id)

    async def expire(self, session_id: str) -> int:
        """Remove a session whose time may have come; how many went. One that lives is looked at again when it may expire."""
        if await self.remove(session_id):
            return 1
        key, expiries = self._link.keys.session(session_id), self._link.keys.expiries
        expires_at = await self._link.command("HGET", key, "expires_at")
        if expires_at is None:
            await self._link.command("ZREM", expiries, session_id)
            # A lifetime may have been set in between.
            expires_at = await self._link.command("HGET", key, "expires_at")
        if expires_at is not None:
            await self._link.command("ZADD", expiries, expires_at, session_id)
        return 0

    async def claim(self, tenant: str, op_id: str, request_digest: str, session_id: str) -> Claim:
        """Tie an operation to a session, or tell what it was tied to."""
        encode_text(op_id, "operation id")
        key = self._link.keys.claim(tenant, op_id)
        status, known, sealed = await self._link.run(
            "claim", [key], encode_text(request_digest, "digest"), session_id, self._link.operation_ttl_seconds
        )
        if status == b"mismatch":
            raise mismatch(op_id)
        answer = None if sealed is None else self._link.sealer.open(sealed, (tenant, "", "answer", op_id))
        return Claim(known.decode(), answer)

    async def settle(self, tenant: str, op_id: str, answer: bytes) -> None:
        """Keep the first answer of a claimed operation."""
        encode_text(op_id, "operation id")
        sealed = await self._link.seal(answer, (tenant, "", "answer", op_id))
        await self._link.run("settle", [self._link.keys.claim(tenant, op_id)], sealed)

    async def _expect(self, session_id: str, seconds: float) -> None:
        await self._link.run("schedule", [self._link.keys.expiries], session_id, seconds, "LT")

    async def _records(self, tenant: str, names: Sequence[str]) -> dict[str, SessionRecord]:
        keys = self._link.keys
        answers = await self._link.run_each("read", [([keys.session(name)], ()) for name in names])
        there = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            if answer[0] == b"found":
                record = record_from(self._link.sealer, name, fields_of(answer[1]))
                if record.tenant == tenant:
                    there[name] = record
        return there

    async def _clean(self, index: str, dangling: Sequence[tuple[str, float]]) -> None:
        if not dangling:
            return
        moment = float((await self._link.run("time", [index]))[0])
        old = [name for name, created_at in dangling if created_at < moment - _DANGLING_SECONDS]
        if old:
            await self._link.command("ZREM", index, *old)

    async def _pointers(self, session_id: str) -> list[Pointer]:
        key = self._link.keys.session(session_id)
        current, previous = await self._link.command("HMGET", key, "current", "previous")
        return pointers_of({"current": current or b"", "previous": previous or b""})

    async def _delete(self, session_id: str, tenant: bytes, etags: str, pointers: Sequence[Pointer]) -> list[Any]:
        keys = self._link.keys
        own = [pointer.key for pointer in pointers if pointer.origin == session_id]
        expected = [*map(str, pointers), "", ""][:2]
        return await self._link.run(
            "delete",
            [
                keys.session(session_id),
                keys.pins(session_id),
                keys.generation_times(session_id),
                *own,
                keys.journal(session_id),
                keys.operations(session_id),
                keys.operation_times(session_id),
                keys.generations(session_id),
                keys.sampled(session_id),
            ],
            tenant,
            etags,
            *expected,
            len(own),
        )

    async def _forget(
        self, session_id: str, tenant: str, generations: Sequence[bytes], pointers: Sequence[Pointer]
    ) -> None:
        """What lies elsewhere. Should we die here, lists are cleaned and pins taken back by those who read them."""
        keys = self._link.keys
        for pointer in pointers:
            if pointer.origin != session_id:
                await self.unpin(session_id, pointer)
        await self._link.command("ZREM", keys.index(tenant), session_id)
        await self._link.command("ZREM", keys.expiries, session_id)
        async with asyncio.TaskGroup() as group:
            for generation in generations:
                group.create_task(self._link.command("UNLINK", keys.generation(generation.decode())))
