"""Operations that make a session, in the embedded store's database. One function, one transaction; every function blocks."""

from __future__ import annotations

from server.store.base import Claim
from server.store.embedded_database import Database
from server.store.embedded_journal import mismatch
from server.store.embedded_sessions import encode_text


def claim(
    database: Database,
    tenant: str,
    op_id: str,
    request_digest: str,
    session_id: str,
    recorded_since: float,
    now: float,
) -> Claim:
    """Tie an operation id to a session's, unless it is tied since `recorded_since`."""
    encode_text(op_id, "operation id")
    values = {
        "tenant": tenant,
        "op_id": op_id,
        "digest": request_digest,
        "session_id": session_id,
        "since": recorded_since,
        "now": now,
    }
    with database.writing():
        row = database.row(
            "SELECT request_digest, session_id, answer FROM claims "
            "WHERE tenant = :tenant AND op_id = :op_id AND recorded_at > :since",
            values,
        )
        if row is None:
            database.run(
                "INSERT OR REPLACE INTO claims VALUES (:tenant, :op_id, :digest, :session_id, NULL, :now)", values
            )
            return Claim(session_id)
    known_digest, known_id, sealed = row
    if known_digest != request_digest:
        raise mismatch(op_id)
    answer = None if sealed is None else database.sealer.open(sealed, (tenant, known_id, "answer", op_id))
    return Claim(known_id, answer)


def settle(database: Database, tenant: str, op_id: str, answer: bytes) -> None:
    """Keep the first answer of a claim, if there is such a claim."""
    encode_text(op_id, "operation id")
    values = {"tenant": tenant, "op_id": op_id}
    with database.writing():
        row = database.row(
            "SELECT session_id FROM claims WHERE tenant = :tenant AND op_id = :op_id AND answer IS NULL", values
        )
        if row is not None:
            sealed = database.sealer.seal(answer, (tenant, row[0], "answer", op_id))
            database.run(
                "UPDATE claims SET answer = :answer WHERE tenant = :tenant AND op_id = :op_id",
                {**values, "answer": sealed},
            )
