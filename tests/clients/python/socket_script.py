"""The fake server's side of a WebSocket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.clients.python.script import Script, error_body, text_of


class SocketScript:
    """One WebSocket: records run in order, cancel and ping at once."""

    def __init__(self, script: Script, websocket: WebSocket) -> None:
        self.script = script
        self.websocket = websocket
        offered = websocket.scope["subprotocols"]
        self.protocol = offered[0] if offered else None
        self.queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.stop: set[str] = set()

    async def send(self, record: dict[str, Any]) -> None:
        if self.protocol == "palimpsest.v1+msgpack":
            await self.websocket.send_bytes(msgpack.packb(record))
        else:
            await self.websocket.send_text(json.dumps(record))

    async def receive(self) -> dict[str, Any]:
        if self.protocol == "palimpsest.v1+msgpack":
            return dict(msgpack.unpackb(await self.websocket.receive_bytes()))
        return dict(json.loads(await self.websocket.receive_text()))

    async def run(self) -> None:
        await self.websocket.accept(self.protocol)
        session_id = self.websocket.path_params["id"]
        if session_id not in self.script.sessions:
            await self.send({"type": "error", **error_body("not_found", "no such session")})
            await self.websocket.close(1008, "no such session")
            return
        await self.send({"type": "session.ready", "session": self.script.view(session_id)})
        async with asyncio.TaskGroup() as group:
            worker = group.create_task(self.work(session_id))
            try:
                while True:
                    await self.take(await self.receive())
            except (WebSocketDisconnect, RuntimeError):
                worker.cancel()

    async def take(self, record: dict[str, Any]) -> None:
        match record["type"]:
            case "ping":
                self.script.pings += 1
                await self.send({"type": "pong"})
            case "cancel" if record["generation_id"] in self.script.named:
                self.stop.add(record["generation_id"])
            case "cancel":
                await self.send({"type": "error", **error_body("not_found")})
            case _:
                await self.queue.put(record)

    async def work(self, session_id: str) -> None:
        while (record := await self.queue.get()) is not None:
            if self.script.socket_errors:
                code = self.script.socket_errors.popleft()
                kind = "unavailable_error" if code == "worker_lost" else "invalid_request_error"
                await self.send({"type": "error", "op_id": record["op_id"], **error_body(code, kind=kind)})
            elif record["type"] == "append":
                answer = self.script.append(session_id, text_of(record), record["op_id"])
                if self.lost():
                    # Stored, and gone before it was acknowledged.
                    await self.websocket.close(self.script.socket_closes.popleft()[0])
                    return
                done = {name: answer[name] for name in ("op_id", "tokens", "position")}
                await self.send({"type": "append.completed", **done})
            elif record["type"] == "resume":
                await self.resume(record)
            else:
                if self.lost():
                    # Gone before anything of it was stored.
                    await self.websocket.close(self.script.socket_closes.popleft()[0])
                    return
                name, _ = self.script.generation(session_id, record, record["op_id"])
                await self.tell(name, -1, record["op_id"])

    def lost(self) -> bool:
        """Whether the connection ends before the first answer."""
        return bool(self.script.socket_closes) and self.script.socket_closes[0][1] == -1

    async def resume(self, record: dict[str, Any]) -> None:
        name, after = record["generation_id"], record["after"]
        self.script.told.append((name, after))
        if self.script.forgetful:
            await self.send({"type": "error", "op_id": record["op_id"], **error_body("not_found")})
        else:
            await self.tell(name, after, record["op_id"])

    async def tell(self, name: str, after: int, op_id: str) -> None:
        closing = bool(self.script.socket_closes) and not self.lost()
        code, left = self.script.socket_closes.popleft() if closing else (0, -1)
        session_id, words = self.script.named[name]
        for kind, number, fields in self.script.tell(name, after):
            if left == 0:
                await self.websocket.close(code)
                return
            left -= 1
            if name in self.stop:
                done = self.script.finished(session_id, name, "".join(words[: max(number - 1, 0)]), "cancelled")
                await self.send({"type": "generation.completed", "op_id": op_id, "generation": done})
                return
            owner = {"generation_id": name} if kind == "generation.delta" else {"op_id": op_id}
            await self.send({"type": kind, **fields, **owner})
            await asyncio.sleep(0.002)
