"""The fake server's answers over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tests.clients.python.script import Failure, Script, error_body, text_of

MODEL = {
    "id": "echo",
    "object": "model",
    "memory": "slots",
    "state_bytes": 64,
    "memories": [{"memory": "slots", "state_bytes": 64}, {"memory": "window", "state_bytes": 32}],
}


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
