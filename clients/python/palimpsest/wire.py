"""From bytes of the server to records and errors of this package."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar, cast

import httpx2
from pydantic import TypeAdapter, ValidationError

from palimpsest.errors import ApiError, ConnectionFailed, UnexpectedAnswer, error_class
from palimpsest.types import Session

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse(kind: type[T], fields: object) -> T:
    """Build a record from decoded JSON or msgpack. Raises `UnexpectedAnswer` naming what does not fit."""
    try:
        record: T = _adapter(cast(Hashable, kind)).validate_python(fields)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, item["loc"])) or "the whole" for item in error.errors())
        raise UnexpectedAnswer(
            f"the server's {kind.__name__} does not fit this client ({where}); "
            "check the address and that client and server are of the same version"
        ) from None
    return record


def decode(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises `UnexpectedAnswer` for anything else."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UnexpectedAnswer("the answer is not a JSON object; is this the address of a Palimpsest server?")
    return fields


def read_body(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object a response holds."""
    return decode(response.content)


def read_session(response: httpx2.Response) -> Session:
    """A session with the ETag of its answer."""
    return replace(parse(Session, read_body(response)), etag=response.headers.get("etag"))


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, given as a number or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def api_error(status: int | None, fields: object, headers: Mapping[str, str] | None = None) -> ApiError:
    """The error in `{"error": {message, type, param, code}}`; a bare error object will do too.

    `headers` must be looked up by lower-case names.
    """
    headers = headers or {}
    found = fields.get("error", fields) if isinstance(fields, dict) else {}
    detail: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = error_class(status, detail.get("code"), detail.get("type"))
    return kind(
        str(detail.get("message") or f"the server answered with status {status}"),
        status=status,
        code=detail.get("code"),
        param=detail.get("param"),
        request_id=headers.get("x-request-id"),
        retry_after=retry_after(headers.get("retry-after")),
    )


def response_error(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """The error of an answer with a status of 400 or more, whatever its body is."""
    try:
        fields: object = json.loads(body)
    except ValueError:
        fields = None
    return api_error(status, fields, headers)


def transport_error(error: httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError, url: str) -> ConnectionFailed:
    """What went wrong between here and the server. Connecting failed = nothing was sent."""
    refused = isinstance(
        error,
        httpx2.ConnectError
        | httpx2.ConnectTimeout
        | httpx2.PoolTimeout
        | httpx2.InvalidURL
        | httpx2.UnsupportedProtocol,
    )
    reason = str(error) or type(error).__name__
    what = "cannot connect to" if refused else "lost the connection to"
    return ConnectionFailed(f"{what} {url}: {reason}", refused=refused)
