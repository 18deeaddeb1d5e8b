"""What the fake server of the clients' tests knows, and how it fails on demand.

One token is one character, so that positions can be read off the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TIME = "2030-01-01T00:00:00Z"


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
