"""Sessions in Redis that begin with what others have read.

A child points to its parent's snapshots, which are pinned meanwhile. Parent, child and the session that wrote a snapshot may lie
on three servers, so a fork has steps; a list of work lets the sweep take back the pins of one that broke off between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.errors import Internal, NotFound, StateRefused, StoreUnavailable
from server.failpoints import failpoint
from server.store.base import SessionRecord
from server.store.redis_keys import FORK_SECONDS, RECHECK_SECONDS
from server.store.redis_link import Link, is_name, storable
from server.store.redis_records import Fields, Pointer, pointers_of, record_from
from server.store.redis_sessions import RedisSessions
from server.store.redis_snapshots import RedisSnapshots, Tail
from server.store.tokens import TOKEN_BYTES, pack_tokens

_ROUNDS = 5
_DUE_AT_ONCE = 20


class RedisForks:
    """One method, one call of the store; `sweep` is a part of one."""

    def __init__(self, link: Link, sessions: RedisSessions, snapshots: RedisSnapshots) -> None:
        self._link, self._sessions, self._snapshots = link, sessions, snapshots

    async def fork(
        self, tenant: str, session_id: str, child: SessionRecord, if_match: frozenset[str] | None
    ) -> SessionRecord:
        """Add `child`, which points where the parent points."""
        failpoint("fork.before")
        if child.tenant != tenant:
            raise Internal(f"A fork of session {session_id} must be its tenant's")
        # First of all: a repeat gets the same answer, whatever has become of the parent.
        if (found := await self.existing(child)) is not None:
            return found
        for _ in range(_ROUNDS):
            fields, tail = await self._snapshots.read(storable(session_id), "", tenant, if_match)
            pointers = pointers_of(fields)
            deadline = await self._pin(child.id, pointers)
            if deadline is None:
                continue
            failpoint("fork.pinned")
            record, sealed = await self._link.on_thread(
                lambda: self._continued(session_id, fields, tail, child)  # noqa: B023
            )
            added, _ = await self._sessions.add(record, tail=sealed, pointers=pointers, deadline=deadline)
            return added
        raise StoreUnavailable(f"Session {session_id} changes too fast to be forked. Try again.")

    async def adopt(self, record: SessionRecord, snapshot: bytes | None, tail: Sequence[int]) -> SessionRecord:
        """Add a session that comes with a snapshot and a tail."""
        position = record.journaled - len(tail)
        if position < 0 or (snapshot is None and position):
            raise Internal(
                f"Session {record.id} cannot begin with {record.journaled} tokens: snapshot and tail make another sum"
            )
        if not is_name(record.id):
            raise Internal(f"{record.id!r} cannot be a session id: only letters, digits, _ and - are allowed")
        packed = pack_tokens(tail)
        if (found := await self.existing(record)) is not None:
            return found
        about = (record.tenant, record.id, "tokens", record.journaled)
        sealed = await self._link.seal(packed, about) if packed else b""
        if snapshot is None:
            return (await self._sessions.add(record, tail=sealed))[0]
        new = await self._snapshots.stage(record.tenant, record.id, 1, position, snapshot)
        added, is_new = await self._sessions.add(record, tail=sealed, pointers=[new], staged=new.key)
        if not is_new:
            await self._link.command("UNLINK", new.key)
        return added

    async def existing(self, record: SessionRecord) -> SessionRecord | None:
        """The session that has the id of `record` already, put on the lists again: it may have broken off before it was."""
        try:
            found = await self._sessions.head(record.id)
        except NotFound:
            return None
        if found.tenant != record.tenant:
            raise Internal(f"There is a session {record.id} already; make a new id")
        await self._sessions.note(found)
        return found

    async def sweep(self) -> bool:
        """Take back pins of forks that broke off or have gone, a few at a time; whether there were any to look at."""
        keys = self._link.keys
        due = await self._link.run("due", [keys.forks], _DUE_AT_ONCE)
        for member in due:
            child_id, pointer = _parsed(member)
            if pointer.key in await self._pointed(child_id):
                await self._link.run("schedule", [keys.forks], member, RECHECK_SECONDS, "")
            else:
                await self._sessions.unpin(child_id, pointer)
                await self._link.command("ZREM", keys.forks, member)
        return bool(due)

    async def _pin(self, child_id: str, pointers: Sequence[Pointer]) -> str | None:
        """Pin all, and say until when the child may be added; None when a snapshot has gone since it was pointed to."""
        keys, deadline = self._link.keys, ""
        for pointer in pointers:
            member = f"{child_id} {pointer}"
            [moment] = await self._link.run("schedule", [keys.forks], member, 2 * FORK_SECONDS, "")
            deadline = deadline or repr(float(moment) + FORK_SECONDS)
            [status] = await self._link.run("pin", [keys.pins(pointer.origin), pointer.key], child_id)
            if status == b"missing":
                return None
        return deadline

    def _continued(
        self, session_id: str, fields: Fields, tail: Tail, child: SessionRecord
    ) -> tuple[SessionRecord, bytes]:
        parent = record_from(self._link.sealer, session_id, fields)
        record = replace(
            child,
            model=parent.model,
            memory=parent.memory,
            version=1,
            journaled=parent.journaled,
            open_text=parent.open_text,
            open_tokens=parent.open_tokens,
            turn=parent.turn,
        )
        if not tail:
            return record, b""
        begin, packed = self._snapshots.open_tail(parent.tenant, session_id, tail)
        if begin + len(packed) // TOKEN_BYTES != parent.journaled:
            raise StateRefused(f"The journal of session {session_id} has a gap; it cannot be forked.")
        return record, self._link.sealer.seal(packed, (child.tenant, child.id, "tokens", parent.journaled))

    async def _pointed(self, session_id: str) -> set[str]:
        key = self._link.keys.session(session_id)
        current, previous = await self._link.command("HMGET", key, "current", "previous")
        return {pointer.key for pointer in pointers_of({"current": current or b"", "previous": previous or b""})}


def _parsed(member: bytes) -> tuple[str, Pointer]:
    child_id, _, pointer = member.partition(b" ")
    return child_id.decode(), Pointer.of(pointer)
