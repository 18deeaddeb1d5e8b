"""How a session goes on: the finest view of its memory that a client has."""

from __future__ import annotations

import pytest
from palimpsest.session import SessionHandle
from palimpsest.types import TokenLogprob


def greedy(session: SessionHandle, count: int, *, remember: bool = True) -> list[TokenLogprob]:
    """The next tokens, the likeliest each."""
    answer = session.generate(max_tokens=count, temperature=0, logprobs=0, remember=remember)
    return list(answer.logprobs or ())


def assert_alike(session: SessionHandle, other: SessionHandle, count: int = 20) -> None:
    """Same position, same greedy tokens, same probabilities. Leaves no trace in either."""
    assert session.refresh().position == other.refresh().position
    found, expected = greedy(session, count, remember=False), greedy(other, count, remember=False)
    assert [token.token_id for token in found] == [token.token_id for token in expected]
    assert [token.logprob for token in found] == pytest.approx([token.logprob for token in expected], abs=1e-3)
