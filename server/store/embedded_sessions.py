"""Session records in the embedded store's database: one function, one transaction. Every function blocks.

`now` is seconds since the epoch; a session whose `expires_at` is not after it does not exist for these
functions.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from server.errors import Internal, InvalidRequest, NotFound, PreconditionFailed
from server.store.base import Page, SessionRecord
from server.store.embedded_database import Database
from server.store.sealing import Sealer

COLUMNS = ", ".join(field.name for field in fields(SessionRecord))
LIVE = "(expires_at IS NULL OR expires_at > :now)"
_SWEEP_BATCH = 50
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Session ids name snapshot files."""


@dataclass(frozen=True)
class Deleted:
    """Sessions that went, and the files that nobody points to since."""

    sessions: int
    files: Sequence[str]


def missing(session_id: str) -> NotFound:
    """The error for a session that was never made, is another tenant's, was deleted, or has expired."""
    return NotFound(f"There is no session {session_id!r}. It may have been deleted or have expired.")


def storable(session_id: str) -> str:
    """`session_id` itself, or `NotFound`: one from outside may be anything, even unfit for SQLite."""
    if not _ID.fullmatch(session_id):
        raise missing(session_id)
    return session_id


def encode_text(text: str, what: str) -> bytes:
    """`text` in UTF-8, or `InvalidRequest` when it has no such form and so could not be stored."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The {what} holds half of a surrogate pair; send valid Unicode.") from error


def expiry(ttl_seconds: int | None, now: float) -> float | None:
    """When a session that changes `now` expires."""
    return None if ttl_seconds is None else now + ttl_seconds


def new_tag() -> str:
    """What tells this change of a record from any other."""
    return secrets.token_hex(4)


def check_match(session_id: str, etag: str, if_match: frozenset[str] | None) -> None:
    """Raises `PreconditionFailed` when the newest ETag is not one of those asked for."""
    if if_match is not None and etag not in if_match:
        raise PreconditionFailed(
            f"Session {session_id} has changed since: its ETag is {etag} now. Read it again and decide anew."
        )


def record_from(sealer: Sealer, row: Sequence[Any]) -> SessionRecord:
    """The record in a row of `COLUMNS`."""
    named = dict(zip((field.name for field in fields(SessionRecord)), row, strict=True))
    tenant, session_id = named["tenant"], named["id"]
    named["metadata"] = json.loads(sealer.open(named["metadata"], (tenant, session_id, "metadata", 0)))
    named["open_text"] = sealer.open(named["open_text"], (tenant, session_id, "open_text", named["journaled"])).decode()
    return SessionRecord(**named)


def sealed_metadata(sealer: Sealer, record: SessionRecord) -> bytes:
    """What the column `metadata` holds."""
    return sealer.seal(json.dumps(dict(record.metadata)).encode(), (record.tenant, record.id, "metadata", 0))


def sealed_text(sealer: Sealer, record: SessionRecord) -> bytes:
    """What the column `open_text` holds. Raises `InvalidRequest` for text that is not Unicode."""
    content = encode_text(record.open_text, "text")
    return sealer.seal(content, (record.tenant, record.id, "open_text", record.journaled))


def beat(database: Database) -> None:
    """Write and commit something small, and new each time: SQLite does not write what has not changed."""
    with database.writing():
        database.run("UPDATE heartbeat SET beats = beats + 1", {})


def create(database: Database, record: SessionRecord, now: float) -> SessionRecord:
    """Add a new session with an empty journal, unless it is there."""
    if record.journaled:
        raise Internal(f"Session {record.id} cannot begin with {record.journaled} tokens that no journal holds")
    with database.writing():
        return taken(database, record, now) or insert(database, record, now)


def taken(database: Database, record: SessionRecord, now: float) -> SessionRecord | None:
    """The session that has the id of `record` already, if it is the same tenant's."""
    if not _ID.fullmatch(record.id):
        raise Internal(f"{record.id!r} cannot be a session id: only letters, digits, _ and - are allowed")
    # An expired one that no sweep has met yet is as good as gone; its files are the next sweep's.
    database.run("DELETE FROM sessions WHERE id = :id AND expires_at <= :now", {"id": record.id, "now": now})
    row = database.row(f"SELECT {COLUMNS} FROM sessions WHERE id = :id", {"id": record.id})
    if row is None:
        return None
    found = record_from(database.sealer, row)
    if found.tenant != record.tenant:
        raise Internal(f"There is a session {record.id} already; make a new id")
    return found


def insert(database: Database, record: SessionRecord, now: float) -> SessionRecord:
    """Add a record in the caller's transaction; its lifetime counts from `now`."""
    record = replace(record, expires_at=expiry(record.ttl_seconds, now), tag=new_tag())
    values: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
    values["metadata"] = sealed_metadata(database.sealer, record)
    values["open_text"] = sealed_text(database.sealer, record)
    # Not from 0: a lease of an earlier session of this id, deleted or expired since, must stay void.
    values["fence"] = secrets.randbelow(1 << 48)
    places = ", ".join(f":{name}" for name in values)
    database.run(f"INSERT INTO sessions ({COLUMNS}, fence) VALUES ({places})", values)
    return record


def get(database: Database, tenant: str, session_id: str, now: float) -> SessionRecord:
    """The newest record of a tenant's session."""
    record = head(database, session_id, now)
    if record.tenant != tenant:
        raise missing(session_id)
    return record


def head(database: Database, session_id: str, now: float) -> SessionRecord:
    """The newest record, whoever's it is."""
    row = database.row(
        f"SELECT {COLUMNS} FROM sessions WHERE id = :id AND {LIVE}", {"id": storable(session_id), "now": now}
    )
    if row is None:
        raise missing(session_id)
    return record_from(database.sealer, row)


def page(
    database: Database,
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
            values["created_at"] = get(database, tenant, after, now).created_at
        except NotFound as error:
            raise InvalidRequest(f"{error.message} List again from the start.", param="after") from error
        values["after"] = after
        behind = f"AND (created_at, id) {comparison} (:created_at, :after)"
    rows = database.rows(
        f"SELECT {COLUMNS} FROM sessions WHERE tenant = :tenant AND {LIVE} {behind} "
        f"ORDER BY created_at {direction}, id {direction} LIMIT :limit",
        values,
    )
    records = tuple(record_from(database.sealer, row) for row in rows[:limit])
    return Page(records=records, has_more=len(rows) > limit)


def update(
    database: Database,
    tenant: str,
    session_id: str,
    metadata: Mapping[str, str] | None,
    ttl_seconds: int | Literal["keep"] | None,
    if_match: frozenset[str] | None,
    now: float,
) -> SessionRecord:
    """Change metadata or lifetime; a call that changes neither leaves the version as it is."""
    with database.writing():
        record = get(database, tenant, session_id, now)
        check_match(session_id, record.etag, if_match)
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
            tag=new_tag(),
        )
        values: dict[str, Any] = {field.name: getattr(changed, field.name) for field in fields(changed)}
        values["metadata"] = sealed_metadata(database.sealer, changed)
        database.run(
            "UPDATE sessions SET metadata = :metadata, ttl_seconds = :ttl_seconds, expires_at = :expires_at, "
            "updated_at = :updated_at, version = :version, tag = :tag WHERE id = :id",
            values,
        )
        return changed


def delete(database: Database, tenant: str, session_id: str, if_match: frozenset[str] | None, now: float) -> Deleted:
    """Remove a session and all its rows; the files are the caller's to remove."""
    with database.writing():
        check_match(session_id, get(database, tenant, session_id, now).etag, if_match)
        return _delete(database, [session_id])


def delete_expired(database: Database, now: float) -> Deleted:
    """Remove some of the expired sessions; none when all are gone.

    A few at a time, so that journal commits get their turn between two calls.
    """
    with database.writing():
        values = {"now": now, "limit": _SWEEP_BATCH}
        rows = database.rows("SELECT id FROM sessions WHERE expires_at <= :now LIMIT :limit", values)
        return _delete(database, [session_id for (session_id,) in rows])


def _delete(database: Database, session_ids: Sequence[str]) -> Deleted:
    files: set[str] = set()
    for session_id in session_ids:
        files.update(
            file for (file,) in database.rows("SELECT file FROM snapshots WHERE session_id = :id", {"id": session_id})
        )
        database.run("DELETE FROM sessions WHERE id = :id", {"id": session_id})
    return Deleted(len(session_ids), unreferenced(database, files))


def unreferenced(database: Database, files: set[str]) -> Sequence[str]:
    """Those snapshot files that no session points to; to be asked inside a write transaction, as forks share files."""
    return [
        file for file in sorted(files) if not database.row("SELECT 1 FROM snapshots WHERE file = :file", {"file": file})
    ]
