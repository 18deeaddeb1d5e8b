"""Session records as fields of a hash, and pointers to snapshots."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from server.store.base import SessionRecord, Turn
from server.store.redis_link import encode_text
from server.store.sealing import Sealer

Fields = Mapping[str, bytes]


@dataclass(frozen=True)
class Pointer:
    """Which snapshot a session has: where it lies, and under which name it was sealed."""

    position: int
    number: int
    origin: str
    """The session that wrote it: this one, or one that it goes back to by forks."""
    key: str

    def __str__(self) -> str:
        return f"{self.position} {self.number} {self.origin} {self.key}"

    @classmethod
    def of(cls, text: bytes) -> Self:
        """What `str` gave."""
        position, number, origin, key = text.decode().split(" ")
        return cls(int(position), int(number), origin, key)


def fields_of(answer: Sequence[bytes]) -> Fields:
    """The answer of HGETALL from inside a script."""
    return {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}


def pointers_of(fields: Fields) -> list[Pointer]:
    """The newest first."""
    return [Pointer.of(fields[name]) for name in ("current", "previous") if fields.get(name)]


def new_tag() -> str:
    """What tells this change of a record from any other."""
    return secrets.token_hex(4)


def record_from(sealer: Sealer, session_id: str, fields: Fields) -> SessionRecord:
    """The record in a session's fields. Raises `StateRefused` when its sealed parts do not open."""
    text = {name: value.decode() for name, value in fields.items() if name not in ("metadata", "open_text")}
    tenant, journaled = text["tenant"], int(text["journaled"])
    return SessionRecord(
        id=session_id,
        tenant=tenant,
        model=text["model"],
        memory=text["memory"],
        created_at=float(text["created_at"]),
        updated_at=float(text["updated_at"]),
        metadata=json.loads(sealer.open(fields["metadata"], (tenant, session_id, "metadata", 0))),
        ttl_seconds=int(text["ttl_seconds"]) if "ttl_seconds" in text else None,
        expires_at=float(text["expires_at"]) if "expires_at" in text else None,
        version=int(text["version"]),
        tag=text["tag"],
        journaled=journaled,
        open_text=sealer.open(fields["open_text"], (tenant, session_id, "open_text", journaled)).decode(),
        open_tokens=int(text["open_tokens"]),
        turn=cast(Turn, text["turn"]),
    )


def fields_for(sealer: Sealer, record: SessionRecord) -> list[str | bytes | int]:
    """Names and values of a new session, in turn. Its lifetime is the script's to count."""
    return [
        *("tenant", encode_text(record.tenant, "tenant")),
        *("model", encode_text(record.model, "model's name")),
        *("memory", encode_text(record.memory, "memory's name")),
        *("created_at", repr(record.created_at)),
        *("updated_at", repr(record.updated_at)),
        *("metadata", sealed_metadata(sealer, record.tenant, record.id, record.metadata)),
        *("version", record.version),
        *("tag", new_tag()),
        *("journaled", record.journaled),
        *("open_text", sealed_text(sealer, record.tenant, record.id, record.journaled, record.open_text)),
        *("open_tokens", record.open_tokens),
        *("turn", record.turn),
    ]


def sealed_metadata(sealer: Sealer, tenant: str, session_id: str, metadata: Mapping[str, str]) -> bytes:
    """Metadata as it lies in the hash."""
    return sealer.seal(json.dumps(dict(metadata)).encode(), (tenant, session_id, "metadata", 0))


def sealed_text(sealer: Sealer, tenant: str, session_id: str, journaled: int, text: str) -> bytes:
    """Open text as it lies in the hash."""
    return sealer.seal(encode_text(text, "text"), (tenant, session_id, "open_text", journaled))
