"""What every route needs: the service, the tenant, and a documented request body."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from server.appends import Tags
from server.auth import tenant_of
from server.errors import InvalidRequest
from server.schemas.requests import VISIBLE
from server.schemas.responses import ErrorBody
from server.service import Service

COMPONENTS = "#/components/schemas/{model}"
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def service_of(connection: HTTPConnection) -> Service:
    """The app's service."""
    service = connection.app.state.service
    assert isinstance(service, Service)
    return service


def _tenant(connection: HTTPConnection) -> str:
    return tenant_of(connection, service_of(connection).settings.api_keys)


Served = Annotated[Service, Depends(service_of)]
Tenant = Annotated[str, Depends(_tenant)]
IdempotencyKey = Annotated[str | None, Header(pattern=VISIBLE)]

_ETAG = re.compile(r'"(\d{1,18}-[0-9a-f]{8})"')


def _tags(if_match: Annotated[str | None, Header()] = None) -> Tags:
    """The ETags an `If-Match` header names; None for any. Weak or foreign ones match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (_ETAG.fullmatch(tag.strip()) for tag in if_match.split(","))
    return frozenset(tag[1] for tag in tags if tag)


IfMatch = Annotated[Tags, Depends(_tags)]


def quoted(etag: str) -> str:
    """An ETag as a header has it."""
    return f'"{etag}"'


def documented(schema: type[BaseModel], *, text: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself: JSON, and plain text too if `text`."""
    reference = {"$ref": COMPONENTS.format(model=schema.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": reference}}
    if text:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"requestBody": {"content": content}}


def one_operation_id(field: str | None, header: str | None) -> str | None:
    """The operation id, given in the body or as `Idempotency-Key`."""
    if field is not None and header is not None and field != header:
        raise InvalidRequest("op_id and Idempotency-Key differ; give one of them", param="op_id")
    return field or header
