"""Which server a command talks to, and which session; errors as one friendly line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from palimpsest.client import DEFAULT_URL, Client
from palimpsest.errors import ApiError, ConnectionFailed, NotFound, PalimpsestError, Unauthenticated
from palimpsest.session import SessionHandle

ServerOption = Annotated[str | None, typer.Option("--server", envvar="PALIMPSEST_URL", help="Address of the server.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="PALIMPSEST_API_KEY", help="API key, if the server asks for one."),
]
SessionOption = Annotated[str | None, typer.Option("--session", help="Id of the session.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the session.")]


@dataclass(frozen=True)
class Target:
    """The server of this call, and the key for it."""

    server: str
    api_key: str | None

    def client(self, retries: int = 2) -> Client:
        """A client of that server."""
        return Client(self.server, api_key=self.api_key, retries=retries)


def target(context: typer.Context, server: str | None, api_key: str | None) -> Target:
    """What the command's own options say, else those before the command."""
    outer: Target = context.find_root().obj
    return Target((server or outer.server).rstrip("/"), api_key or outer.api_key)


def notices() -> Console:
    """Where everything is said that is not an answer, so that answers can be piped."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = 1) -> typer.Exit:
    """Say what is wrong; raise what this returns."""
    notices().print(message, style="red", markup=False)
    return typer.Exit(code)


def explain(error: PalimpsestError, server: str) -> str:
    """An error in one line that says what to do."""
    match error:
        case ConnectionFailed(refused=True):
            return f"{error}. Is the server running at {server}? Start it with `make serve`."
        case Unauthenticated():
            return f"{error} (give the key with --api-key or PALIMPSEST_API_KEY)"
        case NotFound():
            return f"{error} (`palimpsest sessions` shows those of {server})"
        case ApiError(request_id=str(request_id)):
            return f"{error} (request {request_id})"
    return str(error)


@contextmanager
def friendly(server: str) -> Iterator[None]:
    """Turn this package's errors into a line and exit code 1."""
    try:
        yield
    except PalimpsestError as error:
        raise fail(explain(error, server)) from None


def both_given(session: str | None, name: str | None) -> None:
    """Refuse a session named twice."""
    if session is not None and name is not None:
        raise fail("give --session or --name, not both", 2)


def by_name(client: Client, name: str) -> SessionHandle | None:
    """The session of that name, None when there is none. Several are an error that lists them."""
    found = [session for session in client.sessions.all() if session.name == name]
    if len(found) > 1:
        listed = ", ".join(session.id for session in found)
        raise fail(f"{len(found)} sessions are named {name!r} ({listed}); choose one with --session", 2)
    return client.sessions.get(found[0].id) if found else None


def existing(client: Client, session: str | None, name: str | None) -> SessionHandle:
    """The session that was named in either way. Exits with 2 when none was."""
    both_given(session, name)
    if session is not None:
        return client.sessions.get(session)
    if name is None:
        raise fail("say which session: --session ID or --name NAME (`palimpsest sessions` lists them)", 2)
    handle = by_name(client, name)
    if handle is None:
        raise fail(f"no session is named {name!r} (`palimpsest sessions` lists them)")
    return handle


def find_or_create(
    client: Client, session: str | None, name: str | None, system: str | None = None
) -> tuple[SessionHandle, bool]:
    """The session that was named, or a new one, with the name if one was given; and whether it is new."""
    if session is not None:
        return client.sessions.get(session), False
    handle = by_name(client, name) if name is not None else None
    if handle is not None:
        return handle, False
    return client.sessions.create(system=system, metadata={"name": name} if name else None), True


def again(where: Target, verb: str, session_id: str, *arguments: str) -> str:
    """The command line that goes on with a session."""
    server = [] if where.server == DEFAULT_URL else ["--server", where.server]
    return shlex.join(["palimpsest", verb, *server, "--session", session_id, *arguments])
