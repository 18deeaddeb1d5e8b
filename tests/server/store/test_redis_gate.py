from __future__ import annotations

import pytest
import redis.exceptions as redis

from server.store.redis_gate import Gate

CLOSED = "unable to perform operation on <TCPTransport closed=True reading=False 0x55>; the handler is closed"


async def test_a_connection_that_was_just_closed_is_a_lost_one() -> None:
    gate = Gate(1)
    with pytest.raises(redis.ConnectionError):
        async with gate.passing():
            raise RuntimeError(CLOSED)


async def test_a_mistake_of_ours_stays_one() -> None:
    gate = Gate(1)
    with pytest.raises(RuntimeError, match="dictionary changed"):
        async with gate.passing():
            raise RuntimeError("dictionary changed size during iteration")
    async with gate.passing():
        pass
