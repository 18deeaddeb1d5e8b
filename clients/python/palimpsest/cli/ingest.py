"""`palimpsest ingest`: read texts into a session, each of them exactly once."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from palimpsest.cli.connection import (
    KeyOption,
    ServerOption,
    SessionOption,
    again,
    both_given,
    explain,
    fail,
    find_or_create,
    friendly,
    notices,
    target,
)
from palimpsest.cli.feed import Fed, Feed
from palimpsest.cli.format import size
from palimpsest.cli.source import Source, SourceError, open_source
from palimpsest.errors import PalimpsestError


def ingest(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="UTF-8 text files; - is standard input.")],
    session: SessionOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the session; made if there is none.")] = None,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds to keep trying while the server is away.")] = 60.0,
    server: ServerOption = None,
    api_key: KeyOption = None,
) -> None:
    """Read texts into a session. Repeated with the same session, it goes on where it stopped."""
    where = target(context, server, api_key)
    both_given(session, name)
    with ExitStack() as stack:
        sources = [_open(stack, file) for file in files]
        stack.enter_context(friendly(where.server))
        # The feed repeats with more patience than the client would.
        client = stack.enter_context(where.client(retries=0))
        handle, created = find_or_create(client, session, name)
        if created:
            typer.echo(f"session {handle.id}")
        resume = again(where, "ingest", handle.id, *files)
        try:
            for source in sources:
                _ingest(Feed(handle, where.server, patience), source)
        except KeyboardInterrupt:
            raise fail(f"Stopped; nothing is lost. Go on with: {resume}", 130) from None
        except SourceError as error:
            raise fail(str(error)) from None
        except PalimpsestError as error:
            raise fail(f"{explain(error, where.server)}\nNothing is lost. Go on with: {resume}") from None
    if created:
        notices().print(f"Talk to it with: {again(where, 'chat', handle.id)}", markup=False)


def _open(stack: ExitStack, name: str) -> Source:
    try:
        return stack.enter_context(closing(open_source(name)))
    except SourceError as error:
        raise fail(str(error)) from None


def _ingest(feed: Feed, source: Source) -> None:
    """One text, with a progress bar on a terminal and one line at the end."""
    memory = f"memory {size(feed.handle.info.state_bytes)}, fixed"
    began = time.monotonic()
    fed = Fed(0, 0, None)
    with _bar() as progress:
        task = progress.add_task(source.name, total=source.characters, speed="", memory=memory)
        for fed in feed.run(source):
            speed = f"{_rate(fed, began):,.0f} tokens/s"
            progress.update(task, completed=fed.offset, speed=speed)
    typer.echo(_summary(source, fed, began, memory))


def _rate(fed: Fed, began: float) -> float:
    return fed.tokens / max(time.monotonic() - began, 1e-6)


def _summary(source: Source, fed: Fed, began: float, memory: str) -> str:
    if source.characters == 0:
        return f"{source.name}: empty"
    if fed.position is None:
        return f"{source.name}: taken in by an earlier run; nothing left to send"
    return (
        f"{source.name}: {fed.tokens:,} tokens in {time.monotonic() - began:.1f} s "
        f"({_rate(fed, began):,.0f} tokens/s), session at {fed.position:,}, {memory}"
    )


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[memory]}"),
        TimeRemainingColumn(),
        console=notices(),
        transient=True,
    )
