"""A small real server that speaks the interface from a script: echoes, counts, and fails on demand.

One token is one character, so that positions can be read off the text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

TIME = "2030-01-01T00:00:00Z"
MODEL = {
    "id": "echo",
    "object": "model",
    "memory": "slots",
    "state_bytes": 64,
    "memories": [{"memory": "slots", "state_bytes": 64}, {"memory": "window", "state_bytes": 32}],
}


def error_body(code: str, message: str = "scripted", kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass
class Failure:
    """How the next request to a verb goes wrong."""

    verb: str
    status: int = 503
    code: str = "unavailable"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Do the work, then break the connection instead of answering."""


@dataclass
class Script:
    """Everything the server knows; outlives a restart, as a store does."""

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    failures: deque[Failure] = field(default_factory=deque)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Verb and operation id of every request that came."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    api_key: str | None = None
    is_ready: bool = True
    endings: deque[tuple[str, int]] = field(default_factory=deque)
    """How the next streams of events end, each after so many events: nothing | cut | error."""
    socket_closes: deque[tuple[int, int]] = field(default_factory=deque)
    """Close the socket with this code once so many events of the next generation were sent on it; with -1, before
    the next answer to anything."""
    socket_errors: deque[str] = field(default_factory=deque)
    """The codes with which the next records are refused."""
    words: list[str] | None = None
    """What every generation says, instead of an echo."""
    told: list[tuple[str, int]] = field(default_factory=list)
    """Every generation that was asked for by its name, and behind which event."""
    forgetful: bool = False
    """Generations cannot be taken up again."""
    named: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Generations by name: their session and their words."""
    pings: int = 0

    def add(self, metadata: dict[str, str] | None = None) -> dict[str, Any]:
        session_id = f"sess_{len(self.sessions):032x}"
        self.texts[session_id] = ""
        self.sessions[session_id] = {
            "id": session_id,
            "object": "session",
            "model": "echo",
            "memory": "slots",
            "state_bytes": 25_270_682,
            "created_at": TIME,
            "updated_at": TIME,
            "expires_at": None,
            "metadata": metadata or {},
            "version": 1,
        }
        return self.view(session_id)

    def view(self, session_id: str) -> dict[str, Any]:
        return self.sessions[session_id] | {"position": len(self.texts[session_id]), "of_the_future": [1]}

    def append(self, session_id: str, text: str, op_id: str | None) -> dict[str, Any]:
        known = self.operations.get((session_id, op_id or ""))
        if known:
            return known
        self.texts[session_id] += text
        answer = {
            "object": "segment",
            "session_id": session_id,
            "op_id": op_id,
            "tokens": len(text),
            "position": len(self.texts[session_id]),
            "status": "remembered",
        }
        if op_id:
            self.operations[session_id, op_id] = answer
        return answer

    def generation(self, session_id: str, body: dict[str, Any], op_id: str | None) -> tuple[str, list[str]]:
        """A name for the generation, and its deltas: an echo, or "again " for long if asked for "forever"."""
        known = self.operations.get((session_id, op_id or ""))
        if known:
            return known["name"], self.named[known["name"]][1]
        self.generations.append(body)
        said = text_of(body, "prompt")
        if body.get("remember", True):
            self.texts[session_id] += said
        words = ["again "] * 3000 if "forever" in said else [f"{word} " for word in ("echo: " + said).split()]
        words = words if self.words is None else self.words
        name = f"gen_{len(self.generations)}"
        self.named[name] = session_id, words
        if op_id:
            self.operations[session_id, op_id] = {"name": name}
        return name, words

    def tell(self, name: str, after: int) -> list[tuple[str, int, dict[str, Any]]]:
        """The events of a generation behind number `after`: kind, number, fields."""
        session_id, words = self.named[name]
        events: list[tuple[str, int, dict[str, Any]]] = [("generation.started", 0, {"generation_id": name})]
        events += [("generation.delta", n + 1, {"index": n, "text": word}) for n, word in enumerate(words)]
        done = ("generation.completed", len(events), {"generation": self.finished(session_id, name, "".join(words))})
        return [*events, done][after + 1 :]

    def once(self, op_id: str | None, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The session that an operation made; made now if it has not yet."""
        known = self.operations.get(("", op_id or ""))
        made = known or make()
        if op_id:
            self.operations["", op_id] = made
        return self.view(made["id"])

    def etag(self, session_id: str) -> str:
        """Tells states of a session apart."""
        return f'"{self.sessions[session_id]["version"]}-{len(self.texts[session_id])}"'

    def finished(self, session_id: str, name: str, text: str, reason: str = "stop") -> dict[str, Any]:
        if reason == "cancelled":
            self.cancelled.append(name)
        return {
            "id": name,
            "object": "generation",
            "session_id": session_id,
            "text": text,
            "finish_reason": reason,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "context_tokens": 3},
            "position": len(self.texts[session_id]),
        }


def text_of(body: dict[str, Any], name: str = "text") -> str:
    if body.get("messages"):
        return "".join(f"{message['role']}: {message['content']}" for message in body["messages"])
    return str(body.get(name, ""))


def answer_error(status: int, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(code), status, headers={"x-request-id": "req_1", **(headers or {})})


async def broken() -> AsyncIterator[bytes]:
    yield b"{"
    raise ConnectionAbortedError("scripted")


class Routes:
    def __init__(self, script: Script) -> None:
        self.script = script

    def refuse(self, request: Request, verb: str) -> Response | Failure | None:
        """The answer when this request must fail, or the failure that must follow its work."""
        self.script.requests.append((verb, request.headers.get("idempotency-key")))
        key = self.script.api_key
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return answer_error(401, "unauthenticated")
        session_id = request.path_params.get("id")
        if session_id is not None and session_id not in self.script.sessions:
            return answer_error(404, "not_found")
        expected = request.headers.get("if-match")
        if expected and session_id and expected not in ("*", self.script.etag(session_id)):
            return answer_error(412, "precondition_failed")
        if self.script.failures and self.script.failures[0].verb == verb:
            failure = self.script.failures.popleft()
            return failure if failure.drop else answer_error(failure.status, failure.code, failure.headers)
        return None

    async def sessions(self, request: Request) -> Response:
        verb = "create" if request.method == "POST" else "list"
        if isinstance(refused := self.refuse(request, verb), Response):
            return refused
        if request.method == "POST":
            body = await request.json()

            def make() -> dict[str, Any]:
                session = self.script.add(body.get("metadata"))
                if body.get("system"):
                    self.script.append(session["id"], f"system: {body['system']}", None)
                return session

            return self.made(request, refused, make)
        ids = list(reversed(self.script.sessions))
        limit, after = int(request.query_params["limit"]), request.query_params.get("after")
        rest = ids[ids.index(after) + 1 :] if after else ids
        data = [self.script.view(session_id) for session_id in rest[:limit]]
        return JSONResponse({"object": "list", "data": data, "has_more": len(rest) > limit})

    async def session(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, request.method.lower()), Response):
            return refused
        session_id = request.path_params["id"]
        record = self.script.sessions[session_id]
        if request.method == "DELETE":
            del self.script.sessions[session_id]
            return JSONResponse({"id": session_id, "object": "session.deleted", "deleted": True})
        if request.method == "PATCH":
            record.update(await request.json())
            record["version"] += 1
        return JSONResponse(self.script.view(session_id), headers={"etag": self.script.etag(session_id)})

    def made(self, request: Request, failure: Failure | None, make: Callable[[], dict[str, Any]]) -> Response:
        """The answer of a verb that makes a session."""
        session = self.script.once(request.headers.get("idempotency-key"), make)
        if failure:
            return StreamingResponse(broken(), headers={"content-length": "100"})
        return JSONResponse(session, 201, headers={"etag": self.script.etag(session["id"])})

    async def fork(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "fork"), Response):
            return refused
        body, parent = await request.json(), request.path_params["id"]

        def make() -> dict[str, Any]:
            child = self.script.add(body.get("metadata", self.script.sessions[parent]["metadata"]))
            self.script.texts[child["id"]] = self.script.texts[parent]
            return child

        return self.made(request, refused, make)

    async def export(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "export"), Response):
            return refused
        session_id = request.path_params["id"]
        packed = json.dumps([self.script.sessions[session_id]["metadata"], self.script.texts[session_id]]).encode()
        if isinstance(refused, Failure):
            return StreamingResponse(broken(), headers={"content-length": str(len(packed))})
        return Response(packed, media_type="application/octet-stream")

    async def import_session(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "import"), Response):
            return refused
        packed = await request.body()
        try:
            metadata, text = json.loads(packed)
        except ValueError:
            return answer_error(422, "invalid_request")

        def make() -> dict[str, Any]:
            session = self.script.add(metadata)
            self.script.texts[session["id"]] = text
            self.script.sessions[session["id"]]["ttl"] = request.query_params.get("ttl_seconds")
            return session

        return self.made(request, refused, make)

    async def segments(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "append"), Response):
            return refused
        body = await request.body()
        plain = request.headers["content-type"].startswith("text/plain")
        text = body.decode() if plain else text_of(json.loads(body))
        if not text:
            return answer_error(422, "invalid_request")
        answer = self.script.append(request.path_params["id"], text, request.headers.get("idempotency-key"))
        if isinstance(refused, Failure):
            return StreamingResponse(broken(), headers={"content-length": "100"})
        headers = {"etag": self.script.etag(request.path_params["id"])}
        return JSONResponse(answer, 200 if request.query_params["wait"] == "memory" else 202, headers)

    async def generate(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "generate"), Response):
            return refused
        body = await request.json()
        session_id = request.path_params["id"]
        name, words = self.script.generation(session_id, body, request.headers.get("idempotency-key"))
        if isinstance(refused, Failure):
            return StreamingResponse(broken(), headers={"content-length": "100"})
        if body.get("stream"):
            return StreamingResponse(self.events(name, -1), media_type="text/event-stream")
        headers = {"etag": self.script.etag(session_id)}
        return JSONResponse(self.script.finished(session_id, name, "".join(words)), headers=headers)

    async def resume(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "resume"), Response):
            return refused
        name = request.path_params["name"]
        newest = request.headers.get("last-event-id", f"{name}:-1").rpartition(":")
        assert newest[0] == name
        self.script.told.append((name, int(newest[2])))
        if self.script.forgetful or name not in self.script.named:
            return answer_error(404, "not_found")
        return StreamingResponse(self.events(name, int(newest[2])), media_type="text/event-stream")

    async def events(self, name: str, after: int) -> AsyncIterator[str]:
        script = self.script
        ending, left = script.endings.popleft() if script.endings else ("completed", -1)
        try:
            yield ": ping\n\n"
            for kind, number, fields in script.tell(name, after):
                if left == 0:
                    break
                left -= 1
                await asyncio.sleep(0.002)
                yield f"event: {kind}\nid: {name}:{number}\ndata: {json.dumps(fields)}\n\n"
            if ending == "error":
                lost = error_body("worker_lost", kind="unavailable_error")
                yield f"event: error\nid: {name}:9999\ndata: {json.dumps(lost)}\n\n"
            if ending == "cut":
                raise ConnectionAbortedError("scripted")
        except asyncio.CancelledError:
            script.cancelled.append(name)
            raise

    async def memory(self, request: Request) -> Response:
        if isinstance(refused := self.refuse(request, "memory"), Response):
            return refused
        position = len(self.script.texts[request.path_params["id"]])
        layers = [{"layer": 3, "kv_heads": [0, 2], "slots": 64, "used": 5}]
        return JSONResponse(
            {
                "memory": "slots",
                "position": position,
                "state_bytes": 25_270_682,
                "folds": 2,
                "local_tokens": 7,
            }
            | {"layers": layers, "remembered": [{"position": 4, "text": "whale"}]}
        )

    async def models(self, request: Request) -> Response:
        return self.unless(self.refuse(request, "models"), {"object": "list", "data": [MODEL]})

    async def version(self, request: Request) -> Response:
        return self.unless(self.refuse(request, "version"), {"version": "0.1.0"})

    async def ready(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"}) if self.script.is_ready else answer_error(503, "unavailable")

    @staticmethod
    def unless(refused: Response | Failure | None, body: dict[str, Any]) -> Response:
        return refused if isinstance(refused, Response) else JSONResponse(body)

    async def page(self, _: Request) -> Response:
        return PlainTextResponse("<html>another server</html>")

    async def stream(self, websocket: WebSocket) -> None:
        await SocketScript(self.script, websocket).run()


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


def build_app(routes: Routes) -> Starlette:
    one = "/v1/sessions/{id}"
    return Starlette(
        routes=[
            Route("/v1/sessions", routes.sessions, methods=["GET", "POST"]),
            Route("/v1/sessions/import", routes.import_session, methods=["POST"]),
            Route(one, routes.session, methods=["GET", "PATCH", "DELETE"]),
            Route(one + "/segments", routes.segments, methods=["POST"]),
            Route(one + "/generate", routes.generate, methods=["POST"]),
            Route(one + "/fork", routes.fork, methods=["POST"]),
            Route(one + "/export", routes.export),
            Route(one + "/memory", routes.memory),
            Route("/v1/generations/{name}/events", routes.resume),
            WebSocketRoute(one + "/stream", routes.stream),
            Route("/v1/models", routes.models),
            Route("/version", routes.version),
            Route("/readyz", routes.ready),
            Route("/elsewhere/version", routes.page),
        ]
    )


class FakeServer:
    """The script on a real port; `stop` and `start` again are a restart that keeps what was stored."""

    def __init__(self) -> None:
        self._routes = Routes(Script())
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def script(self) -> Script:
        return self._routes.script

    def forget(self) -> None:
        """Begin a new script; what still runs goes on with the old one."""
        self._routes.script = Script()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self._server is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(build_app(self._routes), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(10)
        self._server = self._thread = None


@pytest.fixture(scope="session")
def shared_server() -> Iterator[FakeServer]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def server(shared_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    # A fifth of the usual delays between attempts: the fake server is back at once.
    monkeypatch.setattr("palimpsest.retry.random.uniform", lambda least, most: most / 5)
    shared_server.forget()
    shared_server.start()
    return shared_server


@pytest.fixture
def script(server: FakeServer) -> Script:
    return server.script


@pytest.fixture
def failure() -> type[Failure]:
    """How a test says what shall fail; conftest modules cannot be imported by name."""
    return Failure
