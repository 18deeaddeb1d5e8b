"""`palimpsest sessions fork | export | import`: sessions that begin with another's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli.connection import fail, friendly, target
from palimpsest.cli.format import size
from palimpsest.session import SessionHandle

NewNameOption = Annotated[str | None, typer.Option("--name", help="Name of the new session; by default it has none.")]


def fork(context: typer.Context, session: str, name: NewNameOption = None) -> None:
    """Make a session with the same memory and a future of its own."""
    where = target(context, None, None)
    with friendly(where.server), where.client() as client:
        parent = client.sessions.get(session)
        # A copied name would name two sessions.
        child = parent.fork(metadata=_renamed(parent, name))
    typer.echo(f"{child.id} goes on from {session} at {child.info.position:,} tokens")


def export(context: typer.Context, session: str, file: Path) -> None:
    """Write a session to a file, for any server of the same model that trusts this one's signature."""
    where = target(context, None, None)
    with friendly(where.server), _files(), where.client() as client:
        client.sessions.get(session).export_to(file)
        typer.echo(f"{session} is in {file} ({size(file.stat().st_size)})")


def import_file(context: typer.Context, file: Path, name: NewNameOption = None) -> None:
    """Make a session from a file that `export` wrote."""
    where = target(context, None, None)
    with friendly(where.server), _files(), where.client() as client:
        made = client.import_session(file)
        metadata = _renamed(made, name)
        if metadata != made.info.metadata:
            client.sessions.update(made.id, metadata=metadata)
    typer.echo(f"{made.id} is {file} again, at {made.info.position:,} tokens")


def _renamed(handle: SessionHandle, name: str | None) -> dict[str, str]:
    """The session's metadata with another name, or none."""
    rest = {key: value for key, value in handle.info.metadata.items() if key != "name"}
    return rest | ({"name": name} if name else {})


@contextmanager
def _files() -> Iterator[None]:
    """Say what is wrong with a file in one line."""
    try:
        yield
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}") from None
