"""The events of a generation, read off a body, and one whose client goes away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2

from tests.server.scripted import ScriptedPool


def events_of(text: str) -> list[tuple[str, str, Any]]:
    """Name, id and data of every event in a body."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


async def interrupted(
    http: httpx2.AsyncClient, pool: ScriptedPool, url: str, body: dict[str, Any] | None = None
) -> str:
    """Begin a generation and go away; its id."""
    async with http.stream("POST", url, json={"stream": True} | (body or {})) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        name = json.loads((await anext(lines)).removeprefix("data: "))["generation_id"]
    await settled(pool.closed)
    return str(name)


async def settled(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()
