"""`palimpsest sessions`: list, show, delete, rename; `copies` has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.cli import copies
from palimpsest.cli.connection import KeyOption, ServerOption, Target, fail, friendly, target
from palimpsest.cli.format import relative, size
from palimpsest.types import Memory, Session

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def build() -> typer.Typer:
    """The command with its parts; alone it lists."""
    app = typer.Typer(help="List, show, delete, rename, fork, export and import sessions.")
    app.callback(invoke_without_command=True)(root)
    app.command("list")(list_sessions)
    app.command("show")(show)
    app.command("delete")(delete)
    app.command("rename")(rename)
    app.command("fork")(copies.fork)
    app.command("export")(copies.export)
    app.command("import")(copies.import_file)
    return app


def root(
    context: typer.Context,
    server: ServerOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, show, delete, rename, fork, export and import sessions. Without a verb: list."""
    outer = context.find_root()
    outer.obj = target(context, server, api_key)
    if context.invoked_subcommand is None:
        _list(outer.obj, as_json)


def list_sessions(context: typer.Context, as_json: JsonOption = False) -> None:
    """A table of all sessions, newest first."""
    _list(target(context, None, None), as_json)


def _list(where: Target, as_json: bool) -> None:
    with friendly(where.server), where.client() as client:
        found = list(client.sessions.all())
    if as_json:
        typer.echo(to_json([asdict(session) for session in found], indent=2).decode())
    elif found:
        Console().print(table(found, datetime.now(UTC)))
    else:
        typer.echo("no sessions yet; `palimpsest chat` or `palimpsest ingest FILE` begins one")


def table(found: Sequence[Session], now: datetime) -> Table:
    """Sessions as rows."""
    rows = Table("id", "name", box=None, pad_edge=False)
    for heading in ("tokens", "memory"):
        rows.add_column(heading, justify="right", no_wrap=True)
    rows.add_column("updated", no_wrap=True)
    rows.add_column("expires", no_wrap=True)
    rows.columns[0].no_wrap = True
    for session in found:
        rows.add_row(
            session.id,
            Text(session.name or ""),
            f"{session.position:,}",
            size(session.state_bytes),
            relative(session.updated_at, now),
            relative(session.expires_at, now),
        )
    return rows


def show(context: typer.Context, session: str, as_json: JsonOption = False) -> None:
    """One session and what its memory holds."""
    where = target(context, None, None)
    with friendly(where.server), where.client() as client:
        handle = client.sessions.get(session)
        memory = handle.memory()
    if as_json:
        both = {"session": asdict(handle.info), "memory": asdict(memory)}
        typer.echo(to_json(both, indent=2).decode())
        return
    details = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _details(handle.info, memory, datetime.now(UTC)):
        details.add_row(name, Text(value))
    Console().print(details)


def _details(session: Session, memory: Memory, now: datetime) -> list[tuple[str, str]]:
    return [
        ("id", session.id),
        ("name", session.name or ""),
        ("model", session.model),
        ("memory", f"{session.memory}, {size(session.state_bytes)}, fixed"),
        ("tokens", f"{memory.position:,} taken in, the last {memory.local_tokens:,} word for word"),
        ("folds", f"{memory.folds:,}"),
        ("created", relative(session.created_at, now)),
        ("updated", relative(session.updated_at, now)),
        ("expires", relative(session.expires_at, now)),
    ]


def delete(context: typer.Context, sessions: list[str]) -> None:
    """Delete sessions and everything stored of them."""
    where = target(context, None, None)
    with friendly(where.server), where.client() as client:
        for session in sessions:
            client.sessions.delete(session)
            typer.echo(f"deleted {session}")


def rename(context: typer.Context, session: str, name: str) -> None:
    """Give a session a name."""
    if not name.strip():
        raise fail("a name needs at least one visible character", 2)
    where = target(context, None, None)
    with friendly(where.server), where.client() as client:
        known = client.sessions.get(session).info
        # The ETag keeps metadata that somebody else changes at the same moment.
        client.sessions.update(session, metadata={**known.metadata, "name": name}, if_match=known.etag)
    typer.echo(f"{session} is now named {name}")
