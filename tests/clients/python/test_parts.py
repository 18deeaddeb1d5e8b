"""The parts without I/O: retry delays, errors in answers, records of the WebSocket, numbers for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from palimpsest import ApiError, Conflict, InvalidRequest, NotFound, Segment, Session, UnexpectedAnswer
from palimpsest.cli.format import relative, size
from palimpsest.mailbox import Mailbox
from palimpsest.records import read, socket_url
from palimpsest.retry import RetryPolicy
from palimpsest.wire import api_error, parse, response_error, retry_after


def test_delays_double_within_jitter_and_stay_bounded() -> None:
    policy = RetryPolicy(first_delay=1.0, longest_delay=8.0)
    for failures, most in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (50, 8.0), (5000, 8.0)]:
        delays = [policy.delay(failures) for _ in range(50)]
        assert most / 2 <= min(delays) <= max(delays) <= most
        assert len(set(delays)) > 1
    assert policy.delay(1, asked=9.5) == 9.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("2.5", 2.5), ("-1", 0.0), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0), ("soon", None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b'{"error": null}', b"\xff"])
def test_errors_without_an_error_object_still_have_a_text(body: bytes) -> None:
    error = response_error(502, body, {})
    assert error.status == 502
    assert "502" in str(error)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("not_found", "invalid_request_error", NotFound),
        ("op_id_reused", "invalid_request_error", InvalidRequest),
        ("session_busy", "conflict_error", Conflict),
        ("new", "new", ApiError),
    ],
)
def test_errors_in_a_stream_go_by_code_then_type(code: str, kind: str, expected: type[ApiError]) -> None:
    assert type(api_error(None, {"error": {"message": "m", "type": kind, "code": code}})) is expected


def test_a_session_is_read_while_the_model_loads() -> None:
    fields = {"id": "s", "model": "m", "memory": "slots", "position": 3, "state_bytes": None}
    times = {"created_at": "2030-01-01T00:00:00Z", "updated_at": "2030-01-01T00:00:00.5+00:00"}
    assert parse(Session, fields | times).state_bytes is None


def test_a_record_that_does_not_fit_names_its_fields() -> None:
    with pytest.raises(UnexpectedAnswer, match=r"Segment does not fit this client \(tokens, position\)"):
        parse(Segment, {"tokens": "many", "op_id": None})


@pytest.mark.parametrize("frame", ["", "[]", "{", b"", b"\xc1", b"\x93\x01"])
def test_frames_that_are_no_records_are_refused(frame: str | bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        read(frame)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://host:8000", "ws://host:8000/v1/sessions/a%2Fb/stream"),
        ("https://host/below/", "wss://host/below/v1/sessions/a%2Fb/stream"),
    ],
)
def test_socket_addresses(base: str, expected: str) -> None:
    assert socket_url(httpx2.URL(base), "a/b") == expected


GENERATE = {"type": "generate", "op_id": "op_1"}
STARTED = {"type": "generation.started", "op_id": "op_1", "generation_id": "gen_1"}
COMPLETED = {"type": "generation.completed", "generation": {"id": "gen_1"}}


def delta(index: int, name: str = "gen_1") -> dict[str, object]:
    return {"type": "generation.delta", "generation_id": name, "index": index}


def kinds(mailbox: Mailbox, key: str) -> list[object]:
    """What kinds of records wait for an operation."""
    found = []
    while (record := mailbox.take(key)) is not None:
        found.append(record["type"])
    return found


def test_the_mailbox_sorts_and_drops() -> None:
    mailbox = Mailbox()
    mailbox.open("op_1", GENERATE)
    for record in (STARTED, delta(0, "gen_2"), delta(0)):
        mailbox.deliver(record)
    assert kinds(mailbox, "op_1") == ["generation.started", "generation.delta"]
    mailbox.deliver({"type": "error", "op_id": "op_1", "error": {"code": "not_found"}})
    with pytest.raises(NotFound):
        mailbox.take("op_1")


def test_the_mailbox_sends_again_what_has_no_whole_answer() -> None:
    mailbox = Mailbox()
    for key in ("op_0", "op_1", "op_2", "op_3", "op_4"):
        mailbox.open(key, GENERATE | {"op_id": key})
    mailbox.close("op_0")
    for record in (STARTED, delta(0), delta(1)):
        mailbox.deliver(record)
    mailbox.deliver(STARTED | {"op_id": "op_3", "generation_id": "gen_3"})
    mailbox.deliver(COMPLETED | {"generation": {"id": "gen_3"}})
    again = mailbox.reconnect()
    assert again == [
        {"type": "resume", "op_id": "op_1", "generation_id": "gen_1", "after": 2},
        GENERATE | {"op_id": "op_2"},
        GENERATE | {"op_id": "op_4"},
    ]
    for told_again in (STARTED, delta(1), delta(2), COMPLETED):
        mailbox.deliver(told_again)
    assert kinds(mailbox, "op_1") == ["generation.started", *["generation.delta"] * 3, "generation.completed"]
    assert len(mailbox.reconnect()) == 2


def test_missing_events_are_noticed() -> None:
    mailbox = Mailbox()
    mailbox.open("op_1", GENERATE)
    mailbox.deliver(STARTED)
    mailbox.deliver(delta(0))
    with pytest.raises(UnexpectedAnswer, match="events 2 to 2 of gen_1"):
        mailbox.deliver(delta(2))


def test_a_generation_left_before_it_has_a_name_is_cancelled_when_it_gets_one() -> None:
    mailbox = Mailbox()
    mailbox.open("op_1", GENERATE)
    assert mailbox.cancel("op_1") is None
    mailbox.close("op_1")
    assert mailbox.deliver(STARTED) == {"type": "cancel", "generation_id": "gen_1"}
    assert mailbox.deliver(delta(0)) is None
    mailbox.deliver(COMPLETED)
    assert mailbox.reconnect() == []


def test_a_cancel_that_missed_is_sent_again_and_is_nobodys_error() -> None:
    mailbox = Mailbox()
    mailbox.open("op_1", GENERATE)
    mailbox.deliver(STARTED)
    cancel = mailbox.cancel("op_1")
    assert cancel is not None
    assert mailbox.cancel("op_1") is None
    missed = {"type": "error", "error": {"message": "m", "code": "not_found"}}
    assert mailbox.deliver(missed) is None
    assert mailbox.deliver(delta(0)) == cancel
    mailbox.reconnect()
    assert mailbox.deliver(delta(1)) == cancel


def test_pongs_are_shared_out_in_turn() -> None:
    mailbox = Mailbox()
    for key in ("one", "two"):
        mailbox.open(key, {"type": "ping"})
    mailbox.deliver({"type": "pong"})
    assert (kinds(mailbox, "two"), kinds(mailbox, "one")) == ([], ["pong"])


def test_an_error_that_answers_nothing_in_particular_is_raised_at_once() -> None:
    with pytest.raises(ApiError, match="overloaded"):
        Mailbox().deliver({"type": "error", "error": {"message": "overloaded"}})


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (25_270_682, "24.1 MiB"), (2**50, "1024.0 TiB"), (None, "?")],
)
def test_sizes(count: int | None, shown: str) -> None:
    assert size(count) == shown


def test_relative_times() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert relative(None, now) == "never"
    assert relative(now, now) == "now"
    assert relative(now - timedelta(hours=3, minutes=59), now) == "3 h ago"
    assert relative(now + timedelta(days=2), now) == "in 2 d"
