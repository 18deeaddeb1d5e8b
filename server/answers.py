"""Errors as HTTP answers: the error object, or `application/problem+json` for clients that prefer it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import Response

from server.errors import ServerError, Unauthenticated
from server.validation import printable

PROBLEM = "application/problem+json"


def error_response(
    connection: HTTPConnection, error: ServerError, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error, with `Retry-After` and `WWW-Authenticate` where they belong."""
    extra = dict(headers or {})
    if error.retry_after is not None:
        extra["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        extra["WWW-Authenticate"] = "Bearer"
    problem = _prefers_problem(connection.headers.get("accept", ""))
    body: Mapping[str, Any] = _problem(error) if problem else error.body()
    content = printable(json.dumps(body, ensure_ascii=False))
    return Response(content, error.status, extra, PROBLEM if problem else "application/json")


def _problem(error: ServerError) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "param": error.param,
    }


def _prefers_problem(accept: str) -> bool:
    weights = {}
    for part in accept.split(","):
        name, _, parameters = part.partition(";")
        weights[name.strip().lower()] = _weight(parameters)
    return weights.get(PROBLEM, 0.0) > 0 and weights[PROBLEM] >= weights.get("application/json", 0.0)


def _weight(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
