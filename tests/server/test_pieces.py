from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import MalformedBody
from server.pieces import Piece, pieces

SIZE = 5


async def stream(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def collect(chunks: list[bytes]) -> tuple[list[Piece], str | None]:
    """The pieces, and what was complained about."""
    found = []
    try:
        async for piece in pieces(stream(chunks), SIZE):
            found.append(piece)
    except MalformedBody as error:
        return found, error.message
    return found, None


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=12))
async def test_pieces_depend_on_the_text_alone(text: str, places: list[int]) -> None:
    found, complaint = await collect(cut(text.encode(), places))
    assert complaint is None
    assert [piece.text for piece in found] == [text[start : start + SIZE] for start in range(0, len(text), SIZE)]
    assert [piece.index for piece in found] == list(range(len(found)))
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True] * bool(found)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=12))
async def test_what_is_found_in_broken_bytes_does_not_depend_on_chunks(raw: bytes, places: list[int]) -> None:
    assert await collect(cut(raw, places)) == await collect([raw])


@pytest.mark.parametrize(("raw", "place"), [(b"\xff", 0), (b"abc\xc3(", 3), ("é".encode() * 9 + b"\x80", 18)])
async def test_the_first_bad_byte_is_named(raw: bytes, place: int) -> None:
    for chunks in ([raw], [raw[index : index + 1] for index in range(len(raw))]):
        _, complaint = await collect(chunks)
        assert complaint
        assert f"see byte {place}" in complaint
