"""Session records in the embedded store's database: one function, one transaction. Every function blocks.

`now` is seconds since the epoch; a session whose `expires_at` is not after it does not exist for these
functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import apsw

from server.errors import Internal, InvalidRequest, NotFound, PreconditionFailed
from server.store.base import Page, SessionRecord
from server.store.schema import transaction

COLUMNS = ", ".join(field.name for field in fields(SessionRecord))
LIVE = "(expires_at IS NULL OR expires_at > :now)"
_SWEEP_BATCH = 50
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Session ids name snapshot files."""


def missing(session_id: str) -> NotFound:
    """The error for a session that was never made, is another tenant's, was deleted, or has expired."""
    return NotFound(f"There is no session {session_id!r}. It may have been deleted or have expired.")


def storable(session_id: str) -> str:
    """`session_id` itself, or `NotFound`: one from outside may be anything, even unfit for SQLite."""
    if not _ID.fullmatch(session_id):
        raise missing(session_id)
    return session_id


def encode_text(text: str, what: str) -> str:
    """`text` itself, or `InvalidRequest` when it has no UTF-8 form and so could not be stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The {what} holds half of a surrogate pair; send valid Unicode.") from error
    return text


def expiry(ttl_seconds: int | None, now: float) -> float | None:
    """When a session that changes `now` expires."""
    return None if ttl_seconds is None else now + ttl_seconds


def record_from(row: Sequence[Any]) -> SessionRecord:
    """The record in a row of `COLUMNS`."""
    named = dict(zip((field.name for field in fields(SessionRecord)), row, strict=True))
    named["metadata"] = json.loads(named["metadata"])
    return SessionRecord(**named)


def beat(connection: apsw.Connection) -> None:
    """Write and commit something small, and new each time: SQLite does not write what has not changed."""
    with transaction(connection):
        connection.execute("UPDATE heartbeat SET beats = beats + 1")


def create(connection: apsw.Connection, record: SessionRecord, now: float) -> SessionRecord:
    """Add a new session with an empty journal; its lifetime counts from `now`."""
    if not _ID.fullmatch(record.id):
        raise Internal(f"{record.id!r} cannot be a session id: only letters, digits, _ and - are allowed")
    if record.journaled:
        raise Internal(f"Session {record.id} cannot begin with {record.journaled} tokens that no journal holds")
    record = replace(record, expires_at=expiry(record.ttl_seconds, now))
    values: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
    values["metadata"] = json.dumps(dict(record.metadata))
    places = ", ".join(f":{name}" for name in values)
    with transaction(connection):
        if connection.execute("SELECT 1 FROM sessions WHERE id = ?", (record.id,)).get:
            raise Internal(f"There is a session {record.id} already; make a new id")
        connection.execute(f"INSERT INTO sessions ({COLUMNS}) VALUES ({places})", values)
    return record


def get(connection: apsw.Connection, tenant: str, session_id: str, now: float) -> SessionRecord:
    """The newest record of a tenant's session."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM sessions WHERE id = :id AND tenant = :tenant AND {LIVE}",
        {"id": storable(session_id), "tenant": tenant, "now": now},
    ).get
    if row is None:
        raise missing(session_id)
    return record_from(row)


def page(
    connection: apsw.Connection,
    tenant: str,
    limit: int,
    after: str | None,
    order: Literal["asc", "desc"],
    now: float,
) -> Page:
    """Up to `limit` of a tenant's sessions behind the session `after`."""
    assert limit > 0, "the routes check the limit"
    direction, comparison = ("ASC", ">") if order == "asc" else ("DESC", "<")
    values: dict[str, Any] = {"tenant": tenant, "now": now, "limit": limit + 1}
    behind = ""
    if after is not None:
        try:
            values["created_at"] = get(connection, tenant, after, now).created_at
        except NotFound as error:
            raise InvalidRequest(f"{error.message} List again from the start.", param="after") from error
        values["after"] = after
        behind = f"AND (created_at, id) {comparison} (:created_at, :after)"
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM sessions WHERE tenant = :tenant AND {LIVE} {behind} "
        f"ORDER BY created_at {direction}, id {direction} LIMIT :limit",
        values,
    ).fetchall()
    return Page(records=tuple(record_from(row) for row in rows[:limit]), has_more=len(rows) > limit)


def update(
    connection: apsw.Connection,
    tenant: str,
    session_id: str,
    metadata: Mapping[str, str] | None,
    ttl_seconds: int | Literal["keep"] | None,
    if_version: int | None,
    now: float,
) -> SessionRecord:
    """Change metadata or lifetime; a call that changes neither leaves the version as it is."""
    with transaction(connection):
        record = get(connection, tenant, session_id, now)
        if if_version is not None and if_version != record.version:
            raise PreconditionFailed(
                f"Session {session_id} is at version {record.version}, not {if_version}; read it again."
            )
        if metadata is None and ttl_seconds == "keep":
            return record
        ttl = record.ttl_seconds if ttl_seconds == "keep" else ttl_seconds
        changed = replace(
            record,
            metadata=record.metadata if metadata is None else dict(metadata),
            ttl_seconds=ttl,
            expires_at=expiry(ttl, now),
            updated_at=now,
            version=record.version + 1,
        )
        connection.execute(
            "UPDATE sessions SET metadata = ?, ttl_seconds = ?, expires_at = ?, updated_at = ?, version = ? "
            "WHERE id = ?",
            (json.dumps(dict(changed.metadata)), ttl, changed.expires_at, now, changed.version, session_id),
        )
        return changed


def delete(connection: apsw.Connection, tenant: str, session_id: str, now: float) -> None:
    """Remove a session with its journal and operations; its files are the caller's to remove."""
    with transaction(connection):
        get(connection, tenant, session_id, now)
        connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))


def delete_expired(connection: apsw.Connection, now: float) -> Sequence[str]:
    """Remove some of the expired sessions and return their ids; none when all are gone.

    A few at a time, so that journal commits get their turn between two calls.
    """
    with transaction(connection):
        rows = connection.execute(
            "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at <= ? LIMIT ?) RETURNING id",
            (now, _SWEEP_BATCH),
        ).fetchall()
    return [str(session_id) for (session_id,) in rows]


def remove_unreferenced(connection: apsw.Connection, names: Sequence[str], remove: Callable[[str], None]) -> None:
    """Call `remove` with each of the snapshot files that no session points to.

    The write lock is held meanwhile: nobody can begin to point to a file between the question and its
    removal.
    """
    with transaction(connection):
        for name in names:
            if not connection.execute("SELECT 1 FROM sessions WHERE snapshot_name = ?", (name,)).get:
                remove(name)
