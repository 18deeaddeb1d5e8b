"""However a text arrives, the session is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from palimpsest import Client
from palimpsest.session import SessionHandle

from bench.server_process import ServerProcess
from models.codec import StateKind
from tests.integration.continuing import assert_alike, greedy
from tests.integration.stored import assert_same_state, saved_state
from tests.integration.texts import cut, mixed_text, plain_text

TEXT = mixed_text(1, 100)

Way = Callable[[SessionHandle, str], int]


def in_pieces(session: SessionHandle, text: str) -> int:
    for piece in cut(text, 1, 60):
        position = session.append(piece).position
    return position


def character_by_character(session: SessionHandle, text: str) -> int:
    with session.connect("json") as socket:
        for character in text:
            position = socket.append(character).position
    return position


def over_a_socket(session: SessionHandle, text: str) -> int:
    with session.connect("msgpack") as socket:
        for piece in cut(text, 2, 100):
            position = socket.append(piece).position
    return position


def as_one_stream(session: SessionHandle, text: str) -> int:
    raw = text.encode()
    return session.append_stream(raw[at : at + 7] for at in range(0, len(raw), 7)).position


def as_many_streams(session: SessionHandle, text: str) -> int:
    for piece in cut(text, 3, 200):
        position = session.append_stream(iter([piece])).position
    return position


def journaled_at_once(session: SessionHandle, text: str) -> int:
    for piece in cut(text, 4, 30):
        position = session.append(piece, wait="journal").position
    return position


@pytest.fixture(scope="module")
def whole(server: ServerProcess) -> SessionHandle:
    with server.client() as client:
        session = client.sessions.create()
        session.append(TEXT)
    return session


@pytest.mark.parametrize(
    "way",
    [in_pieces, character_by_character, over_a_socket, as_one_stream, as_many_streams, journaled_at_once],
)
def test_cutting_changes_nothing(
    way: Way, client: Client, server: ServerProcess, state_kind: StateKind, whole: SessionHandle
) -> None:
    session, reference = client.sessions.create(), client.sessions.get(whole.id)
    assert way(session, TEXT) == session.refresh().position
    assert_alike(session, reference)
    assert_same_state(
        saved_state(server.data_dir, session.id, state_kind), saved_state(server.data_dir, whole.id, state_kind)
    )


def test_another_text_is_another_session(client: Client, whole: SessionHandle) -> None:
    session, reference = client.sessions.create(), client.sessions.get(whole.id)
    session.append(TEXT.replace("ba", "ke", 1))
    assert greedy(session, 5, remember=False) != greedy(reference, 5, remember=False)


def test_text_goes_on_behind_a_generation_the_same_however_it_is_cut(client: Client) -> None:
    whole, cut_up = client.sessions.create(), client.sessions.create()
    for session, pieces in zip((whole, cut_up), ([plain_text(2, 50)], cut(plain_text(2, 50), 5, 20)), strict=True):
        for piece in pieces:
            session.append(piece)
        greedy(session, 10)
        for piece in pieces:
            session.append(piece)
    assert_alike(whole, cut_up)


def test_journaled_text_is_acknowledged_before_it_is_read(client: Client) -> None:
    text = plain_text(3, 1500)
    session, reference = client.sessions.create(), client.sessions.create()
    answer = session.append(text, wait="journal")
    assert (answer.status, answer.position) == ("journaled", session.refresh().position)
    assert answer.position > session.memory().folds * 16 + 100
    assert reference.append(text).status == "remembered"
    assert_alike(session, reference)
