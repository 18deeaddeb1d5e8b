"""`palimpsest chat`: talk to a session, today and tomorrow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from palimpsest.cli.ask import sampling_of
from palimpsest.cli.connection import (
    KeyOption,
    ServerOption,
    SessionOption,
    Target,
    again,
    both_given,
    explain,
    fail,
    find_or_create,
    friendly,
    notices,
    target,
)
from palimpsest.cli.conversation import Conversation
from palimpsest.cli.state import last_session, save_last_session
from palimpsest.client import Client
from palimpsest.errors import ApiError, NotFound, NotResumable
from palimpsest.session import SessionHandle


def chat(
    context: typer.Context,
    session: SessionOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the session; made if there is none.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a new session.")] = False,
    system: Annotated[str | None, typer.Option(help="First message of a new session.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest.")] = None,
    server: ServerOption = None,
    api_key: KeyOption = None,
) -> None:
    """Talk to a session, by default the last one. Ctrl-C stops an answer; at the prompt it leaves."""
    where = target(context, server, api_key)
    both_given(session, name)
    if new and session is not None:
        raise fail("give --new or --session, not both", 2)
    with friendly(where.server), where.client() as client:
        handle, created = _choose(client, where, session, name, new, system)
        if system is not None and not created:
            raise fail("--system can only begin a session; add --new to begin one", 2)
        save_last_session(where.server, handle.id)
        _greet(handle, created)
        conversation = Conversation(handle, sampling_of(max_tokens, temperature), write=_write, notice=_notice)
        try:
            with conversation:
                for line in _lines():
                    _turn(conversation, line, where)
        except KeyboardInterrupt:
            _notice("")
        finally:
            _notice(f"Go on another day with: {again(where, 'chat', handle.id)}")


def _choose(
    client: Client, where: Target, session: str | None, name: str | None, new: bool, system: str | None
) -> tuple[SessionHandle, bool]:
    """The session meant, and whether it is new."""
    if new:
        metadata = {"name": name} if name else None
        return client.sessions.create(system=system, metadata=metadata), True
    last = last_session(where.server) if session is None and name is None else None
    if last is None:
        return find_or_create(client, session, name, system)
    try:
        return client.sessions.get(last), False
    except NotFound:
        _notice(f"The last session, {last}, is gone; beginning a new one.")
        return client.sessions.create(system=system), True


def _greet(handle: SessionHandle, created: bool) -> None:
    shown = handle.info.name or handle.id
    if created:
        _notice(f"New session {shown}.")
    else:
        _notice(f"Session {shown}, {handle.info.position:,} tokens so far.")


def _turn(conversation: Conversation, line: str, where: Target) -> None:
    """One question and its answer. At a terminal an error ends the turn, in a pipe the program."""
    try:
        result = conversation.turn(line)
    except (ApiError, NotResumable) as error:
        if not sys.stdin.isatty():
            raise
        _notice(explain(error, where.server))
        return
    typer.echo(" (stopped)" if result.finish_reason == "cancelled" else "")
    if result.finish_reason == "stop" and not result.text.strip():
        _notice("(the model had nothing to say)")


def _lines() -> Iterator[str]:
    """What is typed or piped, line by line, without empty ones."""
    if sys.stdin.isatty():
        # Imported for what it does to input(): editing and history, where the platform has it.
        with suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if line.strip():
            # Bytes that were no UTF-8 arrive as surrogates, which cannot be sent.
            yield line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _notice(text: str) -> None:
    notices().print(text, markup=False)
