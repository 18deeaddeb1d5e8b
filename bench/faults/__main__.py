"""See `bench.faults`. The last line of its output is one JSON object; the exit code is 1 unless every fault has passed."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.faults.account import Account, summary
from bench.faults.registry import chosen
from bench.faults.run import Matrix
from bench.server_process import ServerFailedError

_WIDTH = 38


def main(
    quick: Annotated[
        bool, typer.Option(help="The most telling faults at one point each, in about two minutes.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Those whose name contains this.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random times are drawn from it; printed, to play a run again.")
    ] = None,
    lanes: Annotated[int, typer.Option(help="How many are played at the same time.", min=1)] = 2,
    keep: Annotated[Path | None, typer.Option(help="New folder for data and logs, which stay.")] = None,
) -> None:
    """Kill, halt, cut off and starve real servers while clients write, and see whether anything acknowledged is lost."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        faults = chosen(only, quick=quick)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if keep is not None:
        if keep.exists():
            raise typer.BadParameter(f"{keep} exists; name a new folder")
        keep.mkdir(parents=True)
    seed = random.randrange(1_000_000) if seed is None else seed
    console.print(f"{len(faults)} faults, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="palimpsest-faults-") as name:
        folder = keep or Path(name)
        try:
            matrix = Matrix(folder, seed, quick=quick, lanes=lanes)
            accounts = asyncio.run(matrix.play(faults, lambda account: _tell(console, account)))
        except ServerFailedError as error:
            console.print(f"[red]no fault was played:[/red] {error}")
            raise typer.Exit(1) from None
    figures = summary(accounts)
    print(json.dumps(figures))
    raise typer.Exit(0 if figures["passed"] == figures["faults"] else 1)


def _tell(console: Console, account: Account) -> None:
    points = f"{len(account.passed)}/{len(account.passed) + len(account.failed)} points"
    outcome = "[green]passed[/green]" if account.clean else "[red]FAILED[/red]"
    console.print(f"{account.name:<{_WIDTH}} {points:>14}  {outcome}  {account.seconds:6.1f} s")
    for complaint in account.complaints:
        console.print(f"    {complaint}", markup=False)


if __name__ == "__main__":
    typer.run(main)
