"""A server that forgets, repeats or lies when it is told to, and otherwise does what a server does."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DELTAS = ("one ", "two ", "three ")


@dataclass
class FakeServer:
    """Tokens are characters, and what a session says next follows from a digest of all that it holds."""

    url: str
    sessions: dict[str, str] = field(default_factory=dict)
    operations: dict[str, dict[str, object]] = field(default_factory=dict)
    answers: int = 0
    refuse_next: int = 0
    """So many of the next appends are refused with 503."""
    break_after: int | None = None
    """Streams break off behind so many events; once."""
    gone: bool = False
    """Sessions are not found any more."""
    lie: bool = False
    """Another word is told when a stream is taken up again."""

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/sessions", self.create, methods=["POST"]),
                Route("/v1/sessions/{id}", self.session),
                Route("/v1/sessions/{id}", self.delete, methods=["DELETE"]),
                Route("/v1/sessions/{id}/memory", self.memory),
                Route("/v1/sessions/{id}/segments", self.append, methods=["POST"]),
                Route("/v1/sessions/{id}/generate", self.generate, methods=["POST"]),
                Route("/v1/generations/{id}/events", self.events),
            ]
        )

    async def create(self, _request: Request) -> Response:
        session_id = f"sess_{len(self.sessions)}"
        self.sessions[session_id] = ""
        return JSONResponse({"id": session_id}, 201)

    async def session(self, request: Request) -> Response:
        return JSONResponse({"position": len(self.sessions[request.path_params["id"]])})

    async def delete(self, request: Request) -> Response:
        del self.sessions[request.path_params["id"]]
        return JSONResponse({})

    async def memory(self, request: Request) -> Response:
        held = self.sessions[request.path_params["id"]]
        return JSONResponse({"position": len(held), "folds": 0, "local_tokens": 0, "remembered": []})

    async def append(self, request: Request) -> Response:
        if self.gone:
            return JSONResponse({"error": {"code": "not_found", "message": "no such session"}}, 404)
        if self.refuse_next:
            self.refuse_next -= 1
            error = {"error": {"code": "store_unavailable", "message": "not now"}}
            return JSONResponse(error, 503, {"retry-after": "1"})
        session_id, op_id = (
            request.path_params["id"],
            f"{request.path_params['id']}/{request.headers['idempotency-key']}",
        )
        if op_id not in self.operations:
            is_json = request.headers["content-type"] == "application/json"
            text = (await request.json())["text"] if is_json else (await request.body()).decode()
            self.sessions[session_id] += text
            self.operations[op_id] = {"tokens": len(text), "position": len(self.sessions[session_id])}
        self.answers += 1
        return JSONResponse(self.operations[op_id])

    async def generate(self, request: Request) -> Response:
        asked, session_id = await request.json(), request.path_params["id"]
        held = self.sessions[session_id] + asked.get("prompt", "")
        said = hashlib.sha256(held.encode()).hexdigest()[: asked["max_tokens"]]
        if asked.get("remember", True):
            self.sessions[session_id] = held + said
        if asked.get("stream"):
            return self._stream(0)
        answer = {
            "text": said,
            "finish_reason": "length",
            "usage": {"completion_tokens": len(said)},
            "position": len(held + said),
            "logprobs": [{"token": sign, "token_id": ord(sign), "logprob": -1.0} for sign in said],
        }
        return JSONResponse(answer)

    async def events(self, request: Request) -> Response:
        return self._stream(int(request.headers["last-event-id"].rpartition(":")[2]) + 1)

    def _stream(self, first: int) -> Response:
        until, self.break_after = self.break_after, None
        words = DELTAS if not (self.lie and first) else ("one ", "two ", "four ")
        done = '{"generation": {"text": "%s"}}' % "".join(DELTAS)  # noqa: UP031
        told = ["{}", *(f'{{"index": {index}, "text": "{word}"}}' for index, word in enumerate(words)), done]
        kinds = ["started", *["delta"] * len(words), "completed"]
        frames = [
            f"event: generation.{kind}\ndata: {data}\nid: gen_1:{number}\n\n"
            for number, (kind, data) in enumerate(zip(kinds, told, strict=True))
        ]
        return StreamingResponse(iter(frames[first:until]), media_type="text/event-stream")


@asynccontextmanager
async def served() -> AsyncIterator[FakeServer]:
    """A fake server on a free port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        fake = FakeServer(f"http://127.0.0.1:{listening.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(fake.app, log_level="error", lifespan="off"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listening]))
            try:
                yield fake
            finally:
                server.should_exit = True


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with served() as fake:
        yield fake


@pytest.fixture
async def undisturbed() -> AsyncIterator[FakeServer]:
    async with served() as fake:
        yield fake
