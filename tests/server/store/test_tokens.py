"""Token ids come back as they were, and what is no token id is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Internal
from server.store.tokens import TOKEN_BYTES, pack_tokens, unpack_tokens


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_tokens_come_back(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    assert len(packed) == TOKEN_BYTES * len(tokens)
    assert unpack_tokens(packed) == tokens


def test_the_least_byte_comes_first() -> None:
    assert pack_tokens([1, 256]) == b"\x01\0\0\0\0\x01\0\0"


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1, 2, 2**40]])
def test_what_is_no_token_id_is_refused(tokens: list[int]) -> None:
    with pytest.raises(Internal, match="Token ids"):
        pack_tokens(tokens)


def test_a_cut_token_is_refused() -> None:
    with pytest.raises(Internal, match="7 bytes"):
        unpack_tokens(b"1234567")
