"""Every request as a value: how to send it, whether it may be repeated, how to read the answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx2

from palimpsest.retry import Repeat
from palimpsest.types import Generation, Memory, Message, Model, Sampling, Segment, Session, SessionPage
from palimpsest.wire import parse, read_body, read_session

T = TypeVar("T")

Wait = Literal["memory", "journal"]
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `json` is the body; a streamed body is given to the transport instead."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    repeat: Repeat = Repeat.UNSTARTED
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None


def if_match(etag: str | None) -> dict[str, str]:
    """The header that refuses a change of a session which is not in that state any more; "*" stands for any."""
    if etag is None:
        return {}
    quoted = etag == "*" or etag.endswith('"')
    return {"if-match": etag if quoted else f'"{etag}"'}


def operation(op_id: str | None) -> dict[str, str]:
    """The header that has a request applied once, however often it is sent."""
    return {"idempotency-key": op_id or new_op_id()}


def new_op_id() -> str:
    """An operation id: 128 random bits."""
    return f"op_{secrets.token_hex(16)}"


def session_path(session_id: str, verb: str = "") -> str:
    """The path of a session or of something it can do."""
    return f"/v1/sessions/{quote(session_id, safe='')}" + (f"/{verb}" if verb else "")


def text_or_messages(
    text: str | None, messages: Sequence[Message] | None, name: str = "text", *, required: bool = True
) -> dict[str, Any]:
    """The body fields for either; raises ValueError for both, and for none of them when one is required."""
    if text is not None and messages is not None:
        raise ValueError(f"give {name} or messages, not both")
    if text is not None:
        return {name: text}
    if messages is not None:
        return {"messages": [dict(message) for message in messages]}
    if required:
        raise ValueError(f"give {name} or messages")
    return {}


def generate_fields(
    prompt: str | None, messages: Sequence[Message] | None, remember: bool, sampling: Sampling
) -> dict[str, Any]:
    """The fields of a generate request, over HTTP and over the WebSocket alike."""
    chosen = dict(sampling)
    stop = chosen.get("stop")
    if stop is not None and not isinstance(stop, str):
        chosen["stop"] = list(stop)  # type: ignore[call-overload]
    return {
        **text_or_messages(prompt, messages, "prompt", required=False),
        **chosen,
        "remember": remember,
    }


def create_session(
    system: str | None,
    metadata: Mapping[str, str] | None,
    ttl_seconds: int | None,
    model: str | None,
    memory: str | None,
    op_id: str | None,
) -> Call[Session]:
    """`POST /v1/sessions`."""
    body = _given(
        system=system,
        metadata=dict(metadata) if metadata else None,
        ttl_seconds=ttl_seconds,
        model=model,
        memory=memory,
    )
    return Call("POST", "/v1/sessions", read_session, Repeat.ALWAYS, headers=operation(op_id), json=body)


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def list_sessions(limit: int, after: str | None, order: Order) -> Call[SessionPage]:
    """`GET /v1/sessions`."""
    params = {"limit": str(limit), "order": order} | ({"after": after} if after else {})
    return Call("GET", "/v1/sessions", lambda answer: parse(SessionPage, read_body(answer)), Repeat.ALWAYS, params)


def get_session(session_id: str) -> Call[Session]:
    """`GET /v1/sessions/{id}`."""
    return Call("GET", session_path(session_id), read_session, Repeat.ALWAYS)


def update_session(
    session_id: str, metadata: Mapping[str, str] | None, ttl_seconds: int | None, etag: str | None
) -> Call[Session]:
    """`PATCH /v1/sessions/{id}`."""
    changes = _given(metadata=None if metadata is None else dict(metadata), ttl_seconds=ttl_seconds)
    return Call("PATCH", session_path(session_id), read_session, headers=if_match(etag), json=changes)


def delete_session(session_id: str, etag: str | None) -> Call[None]:
    """`DELETE /v1/sessions/{id}`."""
    return Call("DELETE", session_path(session_id), lambda _: None, headers=if_match(etag))


def fork_session(
    session_id: str, metadata: Mapping[str, str] | None, ttl_seconds: int | None, etag: str | None, op_id: str | None
) -> Call[Session]:
    """`POST /v1/sessions/{id}/fork`."""
    return Call(
        "POST",
        session_path(session_id, "fork"),
        read_session,
        Repeat.ALWAYS,
        headers=if_match(etag) | operation(op_id),
        json=_given(metadata=None if metadata is None else dict(metadata), ttl_seconds=ttl_seconds),
    )


def export_session(session_id: str) -> Call[bytes]:
    """`GET /v1/sessions/{id}/export`."""
    return Call("GET", session_path(session_id, "export"), lambda answer: answer.content, Repeat.ALWAYS)


def import_session(size: int, ttl_seconds: int | None, op_id: str | None) -> Call[Session]:
    """`POST /v1/sessions/import`; the exported bytes, `size` of them, are given to the transport."""
    return Call(
        "POST",
        "/v1/sessions/import",
        read_session,
        Repeat.ALWAYS,
        {} if ttl_seconds is None else {"ttl_seconds": str(ttl_seconds)},
        # With its length told, a body that is too large is refused before it is sent.
        {"content-type": "application/octet-stream", "content-length": str(size)} | operation(op_id),
    )


def _segment_reader(op_id: str) -> Callable[[httpx2.Response], Segment]:
    return lambda answer: replace(parse(Segment, {"op_id": op_id} | read_body(answer)), etag=answer.headers.get("etag"))


def append(
    session_id: str,
    text: str | None,
    messages: Sequence[Message] | None,
    op_id: str | None,
    wait: Wait,
    etag: str | None,
) -> Call[Segment]:
    """`POST /v1/sessions/{id}/segments` with JSON. Carries an operation id, so it may be repeated."""
    op_id = op_id or new_op_id()
    return Call(
        "POST",
        session_path(session_id, "segments"),
        _segment_reader(op_id),
        Repeat.ALWAYS,
        {"wait": wait},
        operation(op_id) | if_match(etag),
        text_or_messages(text, messages),
    )


def append_stream(
    session_id: str, op_id: str | None, wait: Wait, etag: str | None, *, rewindable: bool
) -> Call[Segment]:
    """The same with a `text/plain` body, which may be repeated only if it can be read again."""
    op_id = op_id or new_op_id()
    return Call(
        "POST",
        session_path(session_id, "segments"),
        _segment_reader(op_id),
        Repeat.ALWAYS if rewindable else Repeat.REFUSED,
        {"wait": wait},
        {"content-type": "text/plain; charset=utf-8"} | operation(op_id) | if_match(etag),
    )


def generate(session_id: str, fields: Mapping[str, Any], op_id: str | None, etag: str | None) -> Call[Generation]:
    """`POST /v1/sessions/{id}/generate`, answered at once when it is finished."""
    return Call(
        "POST",
        session_path(session_id, "generate"),
        lambda answer: replace(parse(Generation, read_body(answer)), etag=answer.headers.get("etag")),
        Repeat.ALWAYS,
        headers=operation(op_id) | if_match(etag),
        json={**fields, "stream": False},
    )


_EVENTS = {"accept": "text/event-stream", "cache-control": "no-store"}


def stream(session_id: str, fields: Mapping[str, Any], op_id: str | None, etag: str | None) -> Call[None]:
    """The same as server-sent events; the transport hands the open answer on."""
    return Call(
        "POST",
        session_path(session_id, "generate"),
        lambda _: None,
        Repeat.ALWAYS,
        headers=_EVENTS | operation(op_id) | if_match(etag),
        json={**fields, "stream": True},
    )


def resume(generation_id: str, after: int) -> Call[None]:
    """`GET /v1/generations/{id}/events` from behind event number `after`; -1 tells all of them."""
    newest = {"last-event-id": f"{generation_id}:{after}"} if after >= 0 else {}
    path = f"/v1/generations/{quote(generation_id, safe='')}/events"
    return Call("GET", path, lambda _: None, Repeat.ALWAYS, headers=_EVENTS | newest)


def memory(session_id: str) -> Call[Memory]:
    """`GET /v1/sessions/{id}/memory`."""
    return Call(
        "GET",
        session_path(session_id, "memory"),
        lambda answer: parse(Memory, read_body(answer)),
        Repeat.ALWAYS,
    )


def models() -> Call[tuple[Model, ...]]:
    """`GET /v1/models`."""
    return Call(
        "GET",
        "/v1/models",
        lambda answer: tuple(parse(Model, item) for item in read_body(answer).get("data", [])),
        Repeat.ALWAYS,
    )


def ready() -> Call[None]:
    """`GET /readyz`: not repeated, since "not ready" is an answer."""
    return Call("GET", "/readyz", lambda _: None, Repeat.REFUSED)


def version() -> Call[dict[str, Any]]:
    """`GET /version`."""
    return Call("GET", "/version", read_body, Repeat.ALWAYS)
