"""`palimpsest ask`: one question, the answer on standard output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from palimpsest.cli.connection import (
    KeyOption,
    NameOption,
    ServerOption,
    SessionOption,
    existing,
    fail,
    friendly,
    target,
)
from palimpsest.types import GenerationDelta, Sampling


def sampling_of(max_tokens: int | None, temperature: float | None) -> Sampling:
    """The sampling options that were given."""
    chosen = Sampling()
    if max_tokens is not None:
        chosen["max_tokens"] = max_tokens
    if temperature is not None:
        chosen["temperature"] = temperature
    return chosen


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    session: SessionOption = None,
    name: NameOption = None,
    remember: Annotated[bool, typer.Option(help="Whether question and answer become part of the session.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest.")] = None,
    server: ServerOption = None,
    api_key: KeyOption = None,
) -> None:
    """Ask a session one question. By default it leaves no trace in the session."""
    where = target(context, server, api_key)
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise fail("the question is empty", 2)
    with friendly(where.server), where.client() as client:
        handle = existing(client, session, name)
        with handle.stream(
            messages=[{"role": "user", "content": text}],
            remember=remember,
            **sampling_of(max_tokens, temperature),
        ) as events:
            try:
                for event in events:
                    if isinstance(event, GenerationDelta):
                        typer.echo(event.text, nl=False)
            finally:
                typer.echo()
