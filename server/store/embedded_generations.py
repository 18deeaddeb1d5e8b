"""Generations in the embedded store's database: what was asked, what was sampled, how it ended. Every function blocks.

`check` and `record` are parts of a journal transaction. Sampled tokens are rows of their own beside the journal's: the journal is
trimmed behind a snapshot, while a generation is told again from its first token.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import Internal
from server.store.base import Finish, GenerationRecord, JournalEntry
from server.store.embedded_database import Database
from server.store.embedded_sessions import LIVE, encode_text
from server.store.tokens import pack_tokens, unpack_tokens


def check(database: Database, entry: JournalEntry) -> None:
    """Raises `Internal` for an entry that names generations in a way that makes no sense; reads only."""
    if (begun := entry.begins) is not None:
        _check_begun(database, begun, entry.lease.session_id)
    if entry.sampled_by is None:
        if entry.finish is not None:
            raise Internal("An entry that finishes a generation must name it in `sampled_by`")
        return
    if begun is not None and begun.id == entry.sampled_by:
        finished = begun.finish is not None
    else:
        row = database.row(
            "SELECT reason FROM generations WHERE id = :id AND session_id = :session_id",
            {"id": entry.sampled_by, "session_id": entry.lease.session_id},
        )
        if row is None:
            raise Internal(f"Session {entry.lease.session_id} has no generation {entry.sampled_by!r} to go on with")
        finished = row[0] is not None
    if finished:
        raise Internal(f"Generation {entry.sampled_by!r} has ended; nothing can be added to it")


def record(database: Database, entry: JournalEntry, tenant: str, now: float) -> None:
    """Write what the entry says of generations."""
    if (begun := entry.begins) is not None:
        _begin(database, begun, tenant, now)
    if entry.sampled_by is not None:
        _add(database, tenant, entry.lease.session_id, entry.sampled_by, entry.tokens)
        database.run("UPDATE generations SET recorded_at = :now WHERE id = :id", {"now": now, "id": entry.sampled_by})
        _finish(database, entry.sampled_by, entry.finish)


def generation(database: Database, generation_id: str, recorded_since: float, now: float) -> GenerationRecord | None:
    """A generation recorded after `recorded_since` of a session that is there."""
    encode_text(generation_id, "generation id")
    with database.reading():
        row = database.row(
            "SELECT session_id, tenant, request, start, prompt_tokens, reason, sampled, position "
            f"FROM generations JOIN sessions ON sessions.id = session_id WHERE generations.id = :id AND {LIVE} "
            "AND recorded_at > :since",
            {"id": generation_id, "now": now, "since": recorded_since},
        )
        if row is None:
            return None
        session_id, tenant, request, start, prompt_tokens, *finish = row
        return GenerationRecord(
            id=generation_id,
            session_id=session_id,
            request=database.sealer.open(request, (tenant, session_id, "request", generation_id)),
            start=start,
            prompt_tokens=prompt_tokens,
            tokens=_tokens(database, tenant, session_id, generation_id),
            finish=None if finish[0] is None else Finish(*finish),
        )


def _check_begun(database: Database, begun: GenerationRecord, session_id: str) -> None:
    encode_text(begun.id, "generation id")
    pack_tokens(begun.tokens)
    if begun.session_id != session_id:
        raise Internal(f"Generation {begun.id!r} is of session {begun.session_id!r}, not of {session_id!r}")
    if database.row("SELECT 1 FROM generations WHERE id = :id", {"id": begun.id}):
        raise Internal(f"There is a generation {begun.id!r} already; make a new id")


def _begin(database: Database, begun: GenerationRecord, tenant: str, now: float) -> None:
    database.run(
        "INSERT INTO generations (id, session_id, request, start, prompt_tokens, recorded_at) "
        "VALUES (:id, :session_id, :request, :start, :prompt_tokens, :now)",
        {
            "id": begun.id,
            "session_id": begun.session_id,
            "request": database.sealer.seal(begun.request, (tenant, begun.session_id, "request", begun.id)),
            "start": begun.start,
            "prompt_tokens": begun.prompt_tokens,
            "now": now,
        },
    )
    _add(database, tenant, begun.session_id, begun.id, begun.tokens)
    _finish(database, begun.id, begun.finish)


def _add(database: Database, tenant: str, session_id: str, generation_id: str, tokens: Sequence[int]) -> None:
    if not tokens:
        return
    row = database.row(
        "SELECT start + count FROM generation_tokens WHERE generation_id = :id ORDER BY start DESC LIMIT 1",
        {"id": generation_id},
    )
    start = 0 if row is None else row[0]
    sealed = database.sealer.seal(pack_tokens(tokens), (tenant, session_id, "sampled", generation_id, start))
    database.run(
        "INSERT INTO generation_tokens VALUES (:id, :start, :count, :tokens)",
        {"id": generation_id, "start": start, "count": len(tokens), "tokens": sealed},
    )


def _finish(database: Database, generation_id: str, finish: Finish | None) -> None:
    if finish is not None:
        database.run(
            "UPDATE generations SET reason = :reason, sampled = :sampled, position = :position WHERE id = :id",
            {**vars(finish), "id": generation_id},
        )


def _tokens(database: Database, tenant: str, session_id: str, generation_id: str) -> Sequence[int]:
    rows = database.rows(
        "SELECT start, tokens FROM generation_tokens WHERE generation_id = :id ORDER BY start", {"id": generation_id}
    )
    tokens: list[int] = []
    for start, sealed in rows:
        tokens += unpack_tokens(database.sealer.open(sealed, (tenant, session_id, "sampled", generation_id, start)))
    return tuple(tokens)
