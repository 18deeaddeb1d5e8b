"""Snapshots in Redis: written under a new key before anything points there, and found whole or passed over."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from server.errors import StateRefused, StoreUnavailable
from server.failpoints import failpoint
from server.store.base import Lease, SessionRecord, StoredSession, other_history
from server.store.redis_journal import end_of
from server.store.redis_keys import STAGED_MILLISECONDS
from server.store.redis_link import Link, changed, missing, stale, storable, wanted_etags
from server.store.redis_records import Fields, Pointer, fields_of, pointers_of, record_from
from server.store.redis_sessions import RedisSessions
from server.store.tokens import TOKEN_BYTES, unpack_tokens

_ROUNDS = 10
"""Snapshots may be replaced while they are read, though hardly this often."""

Tail = Sequence[tuple[bytes, bytes]]
"""Entries of the journal: id and sealed tokens."""


class RedisSnapshots:
    """One method, one call of the store; but for those that forks share."""

    def __init__(self, link: Link, sessions: RedisSessions) -> None:
        self._link, self._sessions = link, sessions

    async def load(self, session_id: str) -> StoredSession:
        """The session from its newest snapshot that is whole."""
        failpoint("load.before")
        storable(session_id)
        refused: dict[str, StateRefused] = {}
        for _ in range(_ROUNDS):
            fields, tail = await self.read(session_id, "current")
            pointers = pointers_of(fields)
            skipped = [pointer for pointer in pointers if pointer.key in refused]
            usable = [pointer for pointer in pointers if pointer.key not in refused]
            if skipped:
                fields, tail = await self.read(session_id, "previous" if usable else "")
                if pointers_of(fields) != pointers:
                    continue
            snapshot = None
            if usable:
                try:
                    snapshot = await self.fetch(fields["tenant"].decode(), usable[0])
                except StateRefused as error:
                    refused[usable[0].key] = error
                    continue
            position = usable[0].position if usable else 0
            try:
                return await self._link.on_thread(
                    lambda: self._stored(session_id, fields, snapshot, position, tail, len(skipped))  # noqa: B023
                )
            except StateRefused as error:
                # Nothing older helps when the journal does not reach that far.
                raise (refused[skipped[-1].key] if skipped else error) from error
        raise StoreUnavailable(f"Session {session_id} changes too fast to be read. Try again.")

    async def read(
        self, session_id: str, behind: str, tenant: str = "", if_match: frozenset[str] | None = None
    ) -> tuple[Fields, Tail]:
        """Fields and journal of one moment, behind a pointer or, with "", from its first entry."""
        keys = self._link.keys
        status, *answer = await self._link.run(
            "load", [keys.session(session_id), keys.journal(session_id)], behind, tenant, wanted_etags(if_match)
        )
        if status == b"missing":
            raise missing(session_id)
        if status == b"changed":
            raise changed(session_id, answer[0])
        return fields_of(answer[0]), answer[1]

    async def fetch(self, tenant: str, pointer: Pointer) -> bytes:
        """What a pointer points to. Raises `StateRefused` when it is gone or damaged."""
        sealed = await self._link.blob_command("GET", pointer.key)
        if sealed is None:
            raise StateRefused(f"Snapshot {pointer.number} of session {pointer.origin} is missing from Redis.")
        about = (tenant, pointer.origin, "snapshot", pointer.number)
        content: bytes = await self._link.on_thread(lambda: self._link.sealer.open(sealed, about))
        return content

    async def stage(self, tenant: str, session_id: str, number: int, position: int, snapshot: bytes) -> Pointer:
        """Write a snapshot that goes by itself unless something points to it soon."""
        sealed = await self._link.seal(snapshot, (tenant, session_id, "snapshot", number))
        key = self._link.keys.snapshot(session_id, number, secrets.token_hex(4))
        milliseconds = STAGED_MILLISECONDS + int(2_000 * self._link.options.blob_timeout_seconds)
        await self._link.blob_command("SET", key, sealed, "PX", milliseconds)
        return Pointer(position, number, session_id, key)

    async def save(self, lease: Lease, position: int, snapshot: bytes) -> None:
        """Write a snapshot and point to it."""
        failpoint("snapshot.before")
        numbered = await self._number(lease, position)
        if numbered is None:
            return
        number, tenant, pointers = numbered
        new = await self.stage(tenant, lease.session_id, number, position, snapshot)
        failpoint("snapshot.written")
        kept = pointers[: self._link.generations - 1]
        replaced = pointers[len(kept) :]
        status, *answer = await self._point(lease, new, pointers, replaced)
        if status == b"pointed":
            failpoint("snapshot.pointed")
            for pointer in replaced:
                await self._sessions.unpin(lease.session_id, pointer)
            return
        await self._link.command("UNLINK", new.key)
        if status == b"missing":
            raise missing(lease.session_id)
        if status == b"stale":
            raise stale(lease, answer[0])
        raise StoreUnavailable(
            "Another snapshot came first, or writing this one took too long; it can be written again."
        )

    def open_tail(self, tenant: str, session_id: str, tail: Tail) -> tuple[int, bytes]:
        """Where the tail begins, and its tokens, packed. Raises `StateRefused` for damage or a gap. Blocks."""
        begin: int | None = None
        end, parts = 0, []
        for entry_id, sealed in tail:
            packed = self._link.sealer.open(sealed, (tenant, session_id, "tokens", end_of(entry_id)))
            start = end_of(entry_id) - len(packed) // TOKEN_BYTES
            if begin is None:
                begin = start
            elif start != end:
                raise _gap(session_id)
            end = end_of(entry_id)
            parts.append(packed)
        return begin or 0, b"".join(parts)

    def _stored(
        self, session_id: str, fields: Fields, snapshot: bytes | None, position: int, tail: Tail, skipped: int
    ) -> StoredSession:
        record = record_from(self._link.sealer, session_id, fields)
        tokens = self._tokens(record, position, tail)
        return StoredSession(record, snapshot, position, tokens, skipped)

    def _tokens(self, record: SessionRecord, position: int, tail: Tail) -> Sequence[int]:
        begin, packed = self.open_tail(record.tenant, record.id, tail) if tail else (record.journaled, b"")
        if begin > position or begin + len(packed) // TOKEN_BYTES != record.journaled:
            raise _gap(record.id)
        return unpack_tokens(packed[(position - begin) * TOKEN_BYTES :]) if packed else ()

    async def _number(self, lease: Lease, position: int) -> tuple[int, str, list[Pointer]] | None:
        key = self._link.keys.session(storable(lease.session_id))
        status, *answer = await self._link.run("number", [key], lease.fence, position)
        match status:
            case b"missing":
                raise missing(lease.session_id)
            case b"stale":
                raise stale(lease, answer[0])
            case b"beyond":
                raise other_history(lease.session_id, int(answer[0]), position)
            case b"older":
                return None
        number, tenant, current, previous = answer
        return number, tenant.decode(), pointers_of({"current": current, "previous": previous})

    async def _point(
        self, lease: Lease, new: Pointer, pointers: Sequence[Pointer], replaced: Sequence[Pointer]
    ) -> list[Any]:
        keys, session_id = self._link.keys, lease.session_id
        own = [pointer.key for pointer in replaced if pointer.origin == session_id]
        expected = [*map(str, pointers), "", ""][:2]
        return await self._link.run(
            "point",
            [keys.session(session_id), keys.journal(session_id), new.key, keys.pins(session_id), *own],
            lease.fence,
            *expected,
            str(new),
            self._link.generations,
            STAGED_MILLISECONDS,
        )


def _gap(session_id: str) -> StateRefused:
    return StateRefused(
        f"The journal of session {session_id} has a gap. Restore Redis from a backup, or delete the session."
    )
