"""What a session still knows: `python -m bench.recall [--book PATH] [--quick]`.

Passkey in filler, a seven-digit needle in a book, facts in plain words, and the likelihood of the book itself, each beside its
controls. Trials that share a haystack share its reading: the state is forked where the needle goes in.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.reading import (
    Reader,
    everything_reader,
    full_attention_reader,
    slots_reader,
    window_reader,
)
from models.probes import FACTS, Needle, fact, needle, passkey, passkey_haystack, prose
from models.state import MemoryState
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint, load_checkpoint
from models.weights.hub import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "results" / "recall.json"
TASKS = ("passkey", "needle", "facts", "nll")
console = Console(stderr=True)
_AROUND = {"passkey": "\n{}\n", "needle": " {}"}
"""How a sentence stands in its haystack: the passkey's on a line of its own."""


@dataclass(frozen=True)
class Result:
    """One figure. `accuracy` is digits for needles, exact match for passkeys and facts, and nats a token for `nll`."""

    mechanism: str
    task: str
    length: int
    depth: str
    trials: int
    accuracy: float
    state_bytes: int


@dataclass(frozen=True)
class Trial:
    """A needle that goes into a haystack behind `place` tokens."""

    needle: Needle
    place: int


class Recall:
    """Runs trials and collects results."""

    def __init__(self, checkpoint: Checkpoint, book: str, out: Path) -> None:
        self.checkpoint, self._out = checkpoint, out
        self.tokenizer = Tokenizer.of(checkpoint.tokenizer)
        self.book = self.tokenizer.encode(book)
        self.results: list[Result] = []

    def passkey(self, reader: Reader, length: int, trials: int) -> None:
        """Trials at even depths of a filler of `length` tokens; the whole number has to be right."""
        source = random.Random(length)
        one, two = (len(self.tokenizer.encode(passkey_haystack(repeats))) for repeats in (1, 2))
        hay = self.tokenizer.encode(passkey_haystack(length // (two - one)))
        borders = [place for place in range(one, len(hay) + 1) if (place - one) % (two - one) == 0]
        last = len(borders) - 1
        planted = [Trial(passkey(source), borders[round(index / max(1, trials - 1) * last)]) for index in range(trials)]
        self._report(reader, "passkey", length, self._trials(reader, "passkey", hay, planted))

    def needles(self, reader: Reader, length: int, trials: int, haystacks: int) -> None:
        """Seven digits in the book, at even depths."""
        source = random.Random(length + 1)
        self._hide(reader, "needle", length, [needle(source) for _ in range(trials)], haystacks, source)

    def facts(self, reader: Reader, length: int, rounds: int) -> None:
        """Every template once a round, all in one part of the book, each asked by itself."""
        source, right = random.Random(length + 2), []
        for _ in range(rounds):
            hidden = [fact(source, template) for template in FACTS]
            source.shuffle(hidden)
            begin = source.randrange(max(1, len(self.book) - length))
            hay = self.book[begin : begin + length]
            borders = self._borders(hay)
            state, read = reader.empty(), 0
            for index, one in enumerate(hidden):
                place = borders[round((index + 0.5) / len(hidden) * (len(borders) - 1))]
                state = reader.read(state, hay[read:place])
                state = reader.read(state, self.tokenizer.encode(" " + one.sentence, start=False))
                read = place
            state = reader.read(state, hay[read:])
            right += [self._ask("facts", reader, state, one) for one in hidden]
        self._report(reader, "facts", length, right)

    def nll(self, reader: Reader, length: int) -> None:
        """Likelihood of the book's tokens from the 2,048th on."""
        losses = reader.losses(self.book[:length])[2048:]
        self._add(
            Result(reader.name, "nll", length, "", len(losses), round(float(losses.mean()), 4), reader.state_bytes)
        )

    def _hide(
        self, reader: Reader, task: str, length: int, hidden: Sequence[Needle], haystacks: int, source: random.Random
    ) -> None:
        each = len(hidden) // haystacks
        right: list[float] = []
        for number in range(haystacks):
            begin = source.randrange(max(1, len(self.book) - length))
            hay = self.book[begin : begin + length]
            borders = self._borders(hay)
            chosen = hidden[number * each : (number + 1) * each]
            trials = [
                Trial(one, borders[round((index + 0.5) / each * (len(borders) - 1))])
                for index, one in enumerate(chosen)
            ]
            right += self._trials(reader, task, hay, trials)
        self._report(reader, task, length, right)

    def _trials(self, reader: Reader, task: str, hay: Sequence[int], trials: Iterable[Trial]) -> list[float]:
        state, read, right = reader.empty(), 0, []
        for trial in sorted(trials, key=lambda trial: trial.place):
            state = reader.read(state, hay[read : trial.place])
            read = trial.place
            sentence = self.tokenizer.encode(_AROUND[task].format(trial.needle.sentence), start=False)
            planted = reader.read(reader.read(state.clone(), sentence), hay[read:])
            right.append(self._ask(task, reader, planted, trial.needle))
        return right

    def _ask(self, task: str, reader: Reader, state: MemoryState, hidden: Needle) -> float:
        question = self.tokenizer.encode("\n" + hidden.question, start=False)
        wanted = self.tokenizer.encode(hidden.answer, start=False)
        got = reader.answer(state, question, len(wanted))
        return _score(task, self.tokenizer.decode(wanted), self.tokenizer.decode(got))

    def _report(self, reader: Reader, task: str, length: int, right: Sequence[float]) -> None:
        accuracy = round(sum(right) / len(right), 4)
        self._add(Result(reader.name, task, length, "spread", len(right), accuracy, reader.state_bytes))

    def _add(self, result: Result) -> None:
        self.results.append(result)
        self._save()
        figure = f"{result.accuracy:.4f}"
        console.print(
            f"{time.strftime('%H:%M:%S')} {result.task:<8} {result.length:>7,} {result.mechanism:<16} {figure}"
        )

    def _save(self) -> None:
        """Write what there is, after every figure: runs are long. Other tasks of an earlier run stay."""
        measured = {one.task for one in self.results}
        earlier = json.loads(self._out.read_text(encoding="utf-8")) if self._out.exists() else []
        rows = [row for row in earlier if row["task"] not in measured] + [asdict(one) for one in self.results]
        rows.sort(key=lambda row: (TASKS.index(row["task"]), row["length"]))
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    def _borders(self, hay: Sequence[int]) -> list[int]:
        """Places behind a sentence, but for the last 600 tokens; the ring may still hold up to 768."""
        return [place for place in range(1, len(hay) - 600) if self._ends_sentence(hay, place)]

    def _ends_sentence(self, tokens: Sequence[int], place: int) -> bool:
        return self.tokenizer.token_text(tokens[place - 1]).endswith((".", "!", "?"))


def _score(task: str, wanted: str, got: str) -> float:
    """Digits in their places for needles, everything or nothing for the rest."""
    if task == "needle":
        pairs = list(zip(wanted.strip(), got.strip().ljust(len(wanted)), strict=False))
        return sum(a == b for a, b in pairs) / len(pairs)
    return float(wanted.strip() == got.strip())


def table(results: Sequence[Result]) -> Table:
    """The results for people."""
    shown = Table(title="What a session still knows")
    for name in ("task", "tokens", "memory", "state MiB", "trials", "result"):
        shown.add_column(name, justify="left" if name in ("task", "memory") else "right")
    for one in results:
        figure = f"{one.accuracy:.3f} nats" if one.task == "nll" else f"{one.accuracy:.0%}"
        size = f"{one.state_bytes / 2**20:.1f}"
        shown.add_row(one.task, f"{one.length:,}", one.mechanism, size, f"{one.trials:,}", figure)
    return shown


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description="Measure what a session still knows.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--book", type=Path, help="a long plain text as haystack; default: generated prose")
    parser.add_argument("--quick", action="store_true", help="short lengths, few trials")
    parser.add_argument("--only", nargs="*", choices=TASKS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16)
    book = options.book.read_text(encoding="utf-8") if options.book else prose(random.Random(0), 200_000)
    recall = Recall(checkpoint, book, options.out)
    slots, window = slots_reader(checkpoint), window_reader(checkpoint)
    scale = 4 if options.quick else 1
    tasks = options.only or TASKS
    if "passkey" in tasks:
        recall.passkey(slots, 32_768 // scale, 10)
        recall.passkey(window, 4_096, 5)
    if "needle" in tasks:
        recall.needles(slots, 16_384 // scale, 20 // scale, 4 // scale)
        recall.needles(window, 4_096, 5, 1)
    if "facts" in tasks:
        for length in (4_096, 8_192)[: 1 if options.quick else 2]:
            rounds = 1 if options.quick else 3
            recall.facts(full_attention_reader(checkpoint, length + 600), length, rounds)
            recall.facts(slots, length, rounds)
    if "nll" in tasks:
        for reader in (window, slots, everything_reader(checkpoint, 8_192)):
            recall.nll(reader, 8_192)
    Console().print(table(recall.results))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
