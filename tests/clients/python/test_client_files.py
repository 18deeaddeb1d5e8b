"""Files and streams of the synchronous client: exports, imports, long texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Client, ConnectionFailed, InvalidRequest, Unavailable

from tests.clients.python.script import Failure


def test_an_export_comes_back_as_another_session(client: Client, script: Any, tmp_path: Path) -> None:
    session = client.sessions.create(metadata={"name": "größer"})
    session.append("ä" * 100_000)
    file = tmp_path / "session.palimpsest"
    file.write_bytes(b"old")
    session.export_to(file)
    assert file.read_bytes() == session.export()
    for source in (file, str(file), file.read_bytes()):
        made = client.import_session(source, ttl_seconds=60)
        assert (made.info.name, made.info.position) == ("größer", 100_000)
        assert script.sessions[made.id]["ttl"] == "60"


def test_an_export_that_breaks_off_begins_again_or_leaves_the_file(client: Client, script: Any, tmp_path: Path) -> None:
    session = client.sessions.create()
    session.append("whale")
    file = tmp_path / "session.palimpsest"
    script.failures.append(Failure("export", drop=True))
    session.export_to(file)
    whole = file.read_bytes()
    script.failures.extend([Failure("export", drop=True)] * 3)
    with pytest.raises(ConnectionFailed):
        session.export_to(file)
    assert file.read_bytes() == whole == session.export()
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        session.export_to(tmp_path / "nowhere" / "session")


def test_an_import_that_is_none(client: Client, script: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        client.import_session(b"nonsense")
    with pytest.raises(FileNotFoundError):
        client.import_session(tmp_path / "missing")
    assert not script.sessions


def test_a_file_is_streamed_and_sent_again_from_where_it_stood(client: Client, script: Any) -> None:
    session = client.sessions.create()
    text = "ä🐋\r\n" * 30_000
    file = io.BytesIO(b"skip" + text.encode())
    file.seek(4)
    script.failures.append(Failure("append"))
    assert session.append_stream(file).tokens == len(text)
    assert script.texts[session.id] == text


@pytest.mark.parametrize("source", [["a", "", "ü"], [b"a", "ü".encode()], "aü", io.StringIO("aü")])
def test_what_append_stream_takes(client: Client, script: Any, source: Any) -> None:
    session = client.sessions.create()
    session.append_stream(source)
    assert script.texts[session.id] == "aü"


def test_an_iterator_is_sent_once_only(client: Client, script: Any) -> None:
    session = client.sessions.create()
    script.failures.append(Failure("append"))
    with pytest.raises(Unavailable):
        session.append_stream(iter(["a", "b"]))
    assert len([verb for verb, _ in script.requests if verb == "append"]) == 1


def test_append_stream_refuses_what_is_not_text(client: Client, script: Any) -> None:
    session = client.sessions.create()
    wrong: Any = 5
    with pytest.raises(TypeError, match="not int"):
        session.append_stream(wrong)
