"""Redis commands as they pass over a connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

LONGEST_ARGUMENT = 512 << 20


@dataclass(frozen=True)
class Command:
    """One command: its bytes on the wire, and its name in capitals."""

    raw: bytes
    name: str


async def read_command(reader: asyncio.StreamReader) -> Command | None:
    """The next command of a client, None when it has no more to say.

    Raises `ValueError` for what is no array of bulk strings, which is all that client libraries send.
    """
    try:
        head = await reader.readuntil(b"\r\n")
        raw, arguments = [head], []
        for _ in range(_length(head, b"*")):
            size = await reader.readuntil(b"\r\n")
            content = await reader.readexactly(_length(size, b"$") + 2)
            raw += [size, content]
            arguments.append(content[:-2])
    except asyncio.IncompleteReadError:
        return None
    name = arguments[0].decode("ascii", "replace").upper() if arguments else ""
    return Command(b"".join(raw), name)


def _length(line: bytes, sign: bytes) -> int:
    if line[:1] != sign or not line[1:-2].isdigit() or int(line[1:-2]) > LONGEST_ARGUMENT:
        raise ValueError(f"not a command of the Redis protocol: {line[:40]!r}")
    return int(line[1:-2])
