"""Work handed to a thread is done, whoever stops waiting for it."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from server.errors import StoreUnavailable
from server.store.threads import WorkThreads


async def test_queued_work_of_a_cancelled_caller_is_done_in_its_turn() -> None:
    threads = WorkThreads("test")
    gate = threading.Event()
    done: list[str] = []
    calls = [asyncio.ensure_future(threads.run(gate.wait))]
    for name in ("second", "third"):
        calls.append(asyncio.ensure_future(threads.run(partial(_note, done, name))))
    await asyncio.sleep(0)
    for call in calls[:2]:
        call.cancel()
    await asyncio.wait(calls[:2])
    assert calls[1].cancelled()
    gate.set()
    assert await calls[2]
    assert done == ["second", "third"]
    threads.shutdown()


def _note(done: list[str], name: str) -> bool:
    done.append(name)
    return True


async def test_errors_reach_the_caller_and_the_thread_goes_on() -> None:
    threads = WorkThreads("test")
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(lambda: 1) == 1
    threads.shutdown()


async def test_work_after_the_shutdown_is_unavailable() -> None:
    threads = WorkThreads("test")
    threads.shutdown()
    with pytest.raises(StoreUnavailable):
        await threads.run(lambda: 1)
    with pytest.raises(StoreUnavailable):
        threads.wait(lambda: 1)
