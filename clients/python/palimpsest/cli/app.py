"""The commands put together."""

from __future__ import annotations

import typer

from palimpsest.cli import ask, chat, ingest, sessions
from palimpsest.cli.connection import KeyOption, ServerOption, Target
from palimpsest.client import DEFAULT_URL


def root(context: typer.Context, server: ServerOption = None, api_key: KeyOption = None) -> None:
    """Read long texts into a session that never runs out of context, and talk to it."""
    context.obj = Target((server or DEFAULT_URL).rstrip("/"), api_key)


def build() -> typer.Typer:
    """The command with all its parts."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.callback()(root)
    app.command("ingest")(ingest.ingest)
    app.command("chat")(chat.chat)
    app.command("ask")(ask.ask)
    app.add_typer(sessions.build(), name="sessions")
    return app


def main() -> None:
    """Entry point of the installed command."""
    build()()
