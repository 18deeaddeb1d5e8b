"""Checks fields against a schema and says in plain words which one is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.errors import InvalidRequest

Body = TypeVar("Body", bound=BaseModel)

_SUBJECT = re.compile(r"^(Input|String|List|Dictionary|Value) should ")
_MOST_COMPLAINTS = 5
_LONGEST_NAME = 100


def validated(schema: type[Body], fields: object) -> Body:
    """The fields as a `schema`. Raises `InvalidRequest` naming the first wrong field as `param`."""
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be an object with named fields")
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise complaint(error.errors(include_input=False, include_url=False)) from None


def complaint(details: Sequence[Any]) -> InvalidRequest:
    """What pydantic found wrong, as one error. Never holds the values that were sent."""
    sentences = [_sentence(detail) for detail in details[:_MOST_COMPLAINTS]]
    return InvalidRequest("; ".join(sentences), param=_path(details[0]["loc"]) if details else None)


def _path(location: Sequence[int | str]) -> str | None:
    names = (printable(str(part))[:_LONGEST_NAME] for part in location)
    return ".".join(names) or None


def _sentence(detail: Any) -> str:
    path = _path(detail["loc"])
    match detail["type"]:
        case "missing":
            text = "is required"
        case "extra_forbidden":
            text = "is not a field of this request"
        case _:
            text = _SUBJECT.sub("must ", detail["msg"].removeprefix("Value error, "))
    return f"{path} {text}" if path else text


def printable(text: str) -> str:
    """Text that can be sent as UTF-8: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
