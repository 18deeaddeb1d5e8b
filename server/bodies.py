"""Reads request bodies: JSON and files up to a limit, plain text without one."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from server.errors import MalformedBody, TooLarge, WrongMediaType
from server.validation import validated

Body = TypeVar("Body", bound=BaseModel)

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE)
_LONG = 256 << 10


def media_type(request: Request) -> Literal["json", "text", "none"]:
    """What the body is. Raises `WrongMediaType` for other types, or for text that is not UTF-8."""
    header = request.headers.get("content-type", "").strip()
    charset = _CHARSET.search(header)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise WrongMediaType("the charset must be utf-8")
    match header.partition(";")[0].strip().lower():
        case "application/json":
            return "json"
        case "text/plain":
            return "text"
        case "":
            return "none"
        case _:
            raise WrongMediaType("Content-Type must be one this endpoint takes, such as application/json")


async def read_json(request: Request, schema: type[Body], limit: int) -> Body:
    """The body as a `schema`; no body at all counts as `{}`.

    Raises `WrongMediaType`, `TooLarge` (reading stops there), `MalformedBody` or `InvalidRequest`.
    """
    kind = media_type(request)
    raw = await _limited(
        request, TooLarge(f"a JSON body may hold {limit} bytes; send long text as text/plain instead"), limit
    )
    if not raw:
        return validated(schema, {})
    if kind != "json":
        raise WrongMediaType("set Content-Type: application/json")
    # A long body would hold up every stream while it is parsed.
    fields = await asyncio.to_thread(parse_json, raw) if len(raw) > _LONG else parse_json(raw)
    return validated(schema, fields)


async def read_file(request: Request, limit: int) -> bytes:
    """An `application/octet-stream` body. Raises `WrongMediaType`, or `TooLarge` (reading stops there)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/octet-stream":
        raise WrongMediaType("set Content-Type: application/octet-stream")
    return await _limited(request, TooLarge(f"a file to import may hold {limit} bytes"), limit)


def parse_json(raw: bytes | str) -> Any:
    """Raises `MalformedBody` saying where the fault is."""
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        return json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: see byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedBody(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise MalformedBody("the body is not usable JSON: it is nested too deeply") from None
    except ValueError:
        raise MalformedBody("the body is not usable JSON: it holds a number of too many digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"the body is not JSON: {name} is not a JSON number")


async def _limited(request: Request, too_large: TooLarge, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise too_large
    return bytes(raw)
