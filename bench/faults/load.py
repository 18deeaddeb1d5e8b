"""Faults happen while somebody writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bench.faults.author import Author


async def while_writing(authors: Sequence[Author], befall: Callable[[], Awaitable[object]], *, least: int = 6) -> None:
    """Let all authors write until `befall` is done, but at least so many operations each."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for author in authors:
            tasks.create_task(author.write_until(over, least=least))
        try:
            await befall()
        finally:
            over.set()


async def come_true(holds: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until it holds. Raises `TimeoutError` naming `what`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not holds():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.02)
