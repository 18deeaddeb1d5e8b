"""Sessions as files: exported from the store, and imported once every check has passed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import structlog

from server.catalog import find, listed
from server.claims import Claims
from server.errors import Internal, InvalidRequest, Overloaded
from server.ids import new_id
from server.messages import Check, Done, Offered, Ready
from server.pairs import Pair
from server.pool.base import Pool
from server.portable import PortableSession, pack, unpack
from server.settings import InvalidSettingsError, Settings
from server.signing import Keyring, load_export_keys
from server.store.base import SessionRecord, Store

_AT_ONCE = 4


class Exported(NamedTuple):
    """A session's file in chunks, and the record it was made from."""

    record: SessionRecord
    chunks: list[bytes]


class Transfers:
    """Makes files of sessions and sessions of files."""

    def __init__(self, settings: Settings, pool: Pool, store: Store, claims: Claims) -> None:
        self._settings, self._pool, self._store, self._claims = settings, pool, store, claims
        self._keyring: Keyring | None = None
        self._under_way = 0
        self._log = structlog.get_logger("server.transfers")

    @contextmanager
    def room(self) -> Generator[None, None, None]:
        """For the time that a whole file is held in memory. Raises `Overloaded` when too many are."""
        if self._under_way >= _AT_ONCE:
            raise Overloaded(
                f"{_AT_ONCE} files are being exported or imported already; try again when one has finished"
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def export(self, session_id: str, offer: Offered) -> Exported:
        """The file of a session of that pair, as it stands in the store. Nothing waits for it, and it waits for nothing."""
        stored = await self._store.load(session_id)
        record = stored.record
        session = PortableSession(
            model=record.model,
            model_fingerprint=offer.model_fingerprint,
            memory=record.memory,
            position=record.position,
            open_text=record.open_text,
            open_tokens=record.open_tokens,
            turn=record.turn,
            metadata=record.metadata,
            created_at=record.created_at,
            snapshot=stored.snapshot,
            snapshot_position=stored.snapshot_position,
            tail=stored.tail,
        )
        return Exported(record, await asyncio.to_thread(self._pack, session))

    async def adopt(
        self, tenant: str, data: bytes, served: Ready, *, ttl_seconds: int | None, op_id: str | None
    ) -> SessionRecord:
        """A new session that goes on where the file ends. Nothing is stored before all of it has been checked.

        Raises `InvalidRequest` for a file that is damaged, signed by nobody known, or of a pair that is not served.
        """
        session, digest = await asyncio.to_thread(self._unpack, data)
        _check_served(session, served)
        checked = await self._pool.call(
            Check(
                session_id=new_id("sess"),
                model=session.model,
                memory=session.memory,
                position=session.snapshot_position,
                state=session.snapshot,
                tail=tuple(session.tail),
            )
        )
        if not isinstance(checked, Done):
            raise Internal(f"a worker answered a check with {checked.kind}")

        async def make(session_id: str) -> SessionRecord:
            record = _record(session_id, tenant, session, ttl_seconds)
            return await self._store.adopt(record, session.snapshot, session.tail)

        return await self._claims.once(tenant, "import", op_id, {"file": digest, "ttl_seconds": ttl_seconds}, make)

    def _pack(self, session: PortableSession) -> list[bytes]:
        return list(pack(session, self._keys()))

    def _unpack(self, data: bytes) -> tuple[PortableSession, str]:
        session = unpack(data, self._keys(), self._settings.max_import_bytes)
        return session, hashlib.sha256(data).hexdigest()

    def _keys(self) -> Keyring:
        # Read when first needed: without keys in the settings it is a file, and few servers ever export.
        if self._keyring is None:
            try:
                self._keyring = load_export_keys(self._settings)
            except InvalidSettingsError as error:
                self._log.error("no export keys", reason=str(error))
                raise Internal("the server cannot read its export keys; its log says why") from None
        return self._keyring


def _check_served(session: PortableSession, served: Ready) -> None:
    pair = Pair(session.model, session.memory)
    offer = find(served, pair)
    if offer is None:
        why = f"it is of {pair}, and this server serves {listed(served)}"
    elif offer.model_fingerprint != session.model_fingerprint:
        why = f"the fingerprint of its model is {session.model_fingerprint}, and here it is {offer.model_fingerprint}"
    else:
        return
    raise InvalidRequest(
        f"The file cannot be imported: {why}. Import it where the same is served.", code="model_mismatch"
    )


def _record(session_id: str, tenant: str, session: PortableSession, ttl_seconds: int | None) -> SessionRecord:
    now = time.time()
    return SessionRecord(
        id=session_id,
        tenant=tenant,
        model=session.model,
        memory=session.memory,
        created_at=now,
        updated_at=now,
        metadata=dict(session.metadata),
        ttl_seconds=ttl_seconds,
        expires_at=None if ttl_seconds is None else now + ttl_seconds,
        journaled=session.snapshot_position + len(session.tail),
        open_text=session.open_text,
        open_tokens=session.open_tokens,
        turn=session.turn,
    )
