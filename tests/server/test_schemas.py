from __future__ import annotations

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.messages import SamplingParams
from server.schemas.requests import AppendBody, CreateSession, GenerateBody
from server.schemas.responses import SessionBody
from server.store.base import SessionRecord
from server.validation import validated


def test_times_are_utc_with_milliseconds() -> None:
    record = SessionRecord("sess_1", "a", "m", "slots", created_at=0, updated_at=1.5, expires_at=86400.25)
    body = SessionBody.of(record, None).model_dump(mode="json")
    assert body["created_at"] == "1970-01-01T00:00:00.000Z"
    assert body["updated_at"] == "1970-01-01T00:00:01.500Z"
    assert body["expires_at"] == "1970-01-02T00:00:00.250Z"


def test_an_empty_generate_body_has_the_defaults_of_the_workers() -> None:
    assert validated(GenerateBody, {}).sampling() == SamplingParams()


def test_complaints_are_plain_and_hold_no_values() -> None:
    fields: dict[str, Any] = {"max_tokens": "SECRET", "temperature": 9.5, "SECRET_FIELD": 1}
    with pytest.raises(InvalidRequest) as error:
        validated(GenerateBody, fields)
    assert error.value.message == (
        "max_tokens must be a valid integer; temperature must be less than or equal to 2; "
        "SECRET_FIELD is not a field of this request"
    )
    assert error.value.param == "max_tokens"


def test_complaints_have_an_end() -> None:
    with pytest.raises(InvalidRequest) as error:
        validated(CreateSession, {f"field{number}": 1 for number in range(1000)})
    assert len(error.value.message) < 1000


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_surrogates_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as error:
        validated(AppendBody, {"text": text})
    error.value.message.encode()


@pytest.mark.parametrize("fields", [None, [], "text", 5])
def test_a_body_is_an_object(fields: object) -> None:
    with pytest.raises(InvalidRequest, match="object"):
        validated(AppendBody, fields)
