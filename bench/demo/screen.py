"""What people see of the demo while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.demo.outcome import Answer, Outcome


class Reading:
    """A bar over characters, with the tokens that they turned out to be and how many a second."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task, self._tokens = progress, task, 0

    def advance(self, characters: int, tokens: int) -> None:
        """So much more was taken in."""
        self._tokens += tokens
        elapsed = self._progress.tasks[0].elapsed or 1e-9
        said = f"{self._tokens:,} tokens, {self._tokens / elapsed:,.0f} tok/s"
        self._progress.update(self._task, advance=characters, said=said)


class Screen:
    """Writes to a terminal, or plain lines to a file."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def reading(self, characters: int, what: str) -> Iterator[Reading]:
        """Show a bar while text of so many characters is read."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            yield Reading(progress, progress.add_task(what, total=characters, said=""))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something is under way."""
        with self._console.status(escape(what)):
            yield

    def step(self, what: str) -> None:
        """Something went as it should."""
        self._console.print(f"[green]✓[/green] {escape(what)}", highlight=False)

    def crash(self, what: str) -> None:
        """The server was killed, on purpose."""
        self._console.print(f"[bold red]✗[/bold red] {escape(what)}", highlight=False, soft_wrap=True)

    def answered(self, answer: Answer) -> None:
        """A question and what came back."""
        mark = "[green]✓[/green]" if answer.right else "[bold red]✗[/bold red]"
        self._console.print(f"{mark} {escape(answer.question)}[bold]{escape(answer.answer)}[/bold]", highlight=False)

    def failed(self, what: str) -> None:
        """The demo cannot go on."""
        self._console.print(f"[bold red]The demo failed:[/bold red] {escape(what)}", highlight=False, soft_wrap=True)

    def report(self, outcome: Outcome) -> None:
        """The table of questions, and what the figures mean."""
        self._console.print(_table(outcome))
        for line in _remarks(outcome):
            self._console.print(escape(line), highlight=False, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    table = Table(title="A session through two crashes")
    for name in ("tokens taken in", "state bytes", "question", "answer", "expected", "resume time"):
        table.add_column(name, justify="left" if name in ("question", "answer", "expected") else "right")
    for answer in outcome.answers:
        colour = "green" if answer.right else "red"
        table.add_row(
            f"{answer.tokens:,}",
            f"{answer.state_bytes:,}",
            escape(answer.question),
            f"[{colour}]{escape(answer.answer.strip())}[/{colour}]",
            escape(answer.expected.strip()),
            f"{answer.first_token_ms:,.0f} ms" if answer.resumed else "",
        )
    return table


def _remarks(outcome: Outcome) -> Iterator[str]:
    alike = sum(ours == theirs for ours, theirs in zip(outcome.continued, outcome.foreseen, strict=False))
    rounding = "" if alike == len(outcome.foreseen) else "; replay rounds otherwise than decoding in bfloat16"
    yield f"Read at {outcome.speed:,.0f} tokens per second."
    yield f"Tokens acknowledged and lost: {outcome.lost}; applied twice: {outcome.twice}."
    yield "The first row was asked after the first crash, the others after the second; only these are counted."
    yield (
        "Resume time: from opening the socket to the first token of the first answer of a restarted server. "
        "The first one includes tokens of the broken append that were journaled, but never read before; "
        f"the one after the second crash, {outcome.resume_ms:,.0f} ms, is resume_ms."
    )
    yield (
        f"Of the broken generation {outcome.seen} tokens were seen, and {outcome.unseen} more were kept; behind them "
        f"the session goes on as rehearsed before the crash in {alike} of {len(outcome.foreseen)} tokens{rounding}."
    )
