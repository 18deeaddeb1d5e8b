from __future__ import annotations

from server.claims import pack_answer, unpack_answer
from server.store.base import SessionRecord

RECORD = SessionRecord(
    id="sess_1",
    tenant="a",
    model="m",
    memory="slots",
    created_at=1.5,
    updated_at=2.25,
    metadata={"book": "ä\0"},
    ttl_seconds=60,
    expires_at=62.25,
    version=7,
    tag="0123abcd",
    journaled=40,
    open_text="TOP SECRET",
    open_tokens=2,
    turn="asked",
)


def test_an_answer_shows_the_same_again() -> None:
    again = unpack_answer("a", pack_answer(RECORD))
    for name in (
        "id",
        "tenant",
        "model",
        "memory",
        "created_at",
        "updated_at",
        "expires_at",
        "metadata",
        "etag",
        "position",
    ):
        assert getattr(again, name) == getattr(RECORD, name)


def test_an_answer_holds_no_text() -> None:
    assert b"SECRET" not in pack_answer(RECORD)
    assert unpack_answer("a", pack_answer(RECORD)).open_text == ""
