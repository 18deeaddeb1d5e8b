"""Operations that make a session: however often one is asked for, there is one session and one answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

import msgpack

from server.ids import new_id
from server.store.base import SessionRecord, Store

Kind = Literal["create", "fork", "import"]
Make = Callable[[str], Awaitable[SessionRecord]]
_PLAIN: Final = ("id", "model", "memory", "created_at", "updated_at", "ttl_seconds", "expires_at", "version", "tag")


class Claims:
    """Ties operation ids, which are a tenant's and of one kind, to the sessions they make."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def once(
        self, tenant: str, kind: Kind, op_id: str | None, request: Mapping[str, object], make: Make
    ) -> SessionRecord:
        """The record that `make` returns for a new session id; that of the first time for an `op_id` seen before.

        After a crash, or beside a twin, `make` is called again with the same id: it has to find what is there already. A try that
        failed has given no answer, so a repeat makes one. Raises `OperationMismatch` when `op_id` came with another `request`.
        """
        proposed = new_id("sess")
        if op_id is None:
            return await make(proposed)
        name, digest = f"{kind}:{op_id}", _digest(request)
        claim = await self._store.claim(tenant, name, digest, proposed)
        if claim.answer is None:
            record = await make(claim.session_id)
            await self._store.settle(tenant, name, pack_answer(record))
            # Of two at the same time one has settled first: both give that one's answer.
            claim = await self._store.claim(tenant, name, digest, claim.session_id)
            if claim.answer is None:
                return record
        return unpack_answer(tenant, claim.answer)


def pack_answer(record: SessionRecord) -> bytes:
    """What an answer shows of a record. The text a session holds is no part of it."""
    shown = {name: getattr(record, name) for name in _PLAIN}
    return msgpack.packb(shown | {"position": record.position, "metadata": dict(record.metadata)})  # type: ignore[no-any-return]


def unpack_answer(tenant: str, answer: bytes) -> SessionRecord:
    """A record that shows the same again."""
    shown: dict[str, Any] = msgpack.unpackb(answer)
    return SessionRecord(tenant=tenant, journaled=shown.pop("position"), **shown)


def _digest(request: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
