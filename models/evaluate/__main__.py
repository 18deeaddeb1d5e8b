"""What a memory on a pretrained model still knows: `palimpsest-server evaluate MODEL --memory NAME --out FILE`."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from rich.console import Console

from models.arguments import read_book, settings
from models.errors import ModelsError
from models.evaluate.controls import Contenders
from models.evaluate.evaluation import Evaluation
from models.evaluate.figure import check_drawing, draw
from models.evaluate.plan import CONTROLS, Plan
from models.evaluate.reading import memory_reader
from models.evaluate.results import IN_NATS, TASKS, Results
from models.evaluate.table import table
from models.evaluate.trials import Trials
from models.load import DTYPES, Offer, load_offer, weights_of
from models.probes import prose
from models.weights.checkpoint import load_checkpoint

_CHARACTERS = 200_000
"""Of generated prose, and more for texts that are longer."""
_CHARACTERS_A_TOKEN = 6
"""More than there are in a token of prose."""


def main() -> None:
    """Entry point."""
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="palimpsest-server evaluate",
        description="Measure what a memory on a pretrained model still knows, beside its controls. Every figure is "
        "written as it comes: what a run that is stopped has measured stays.",
    )
    parser.add_argument("model", help="a path, hf:<repo> or pypi:<wheel>")
    parser.add_argument("--memory", required=True, help="the memory, such as slots")
    parser.add_argument("--options", type=settings, default={}, help='the memory\'s settings: {"rule": "delta", …}')
    parser.add_argument("--adapter", type=Path, help="what the memory has learned, if not what is in the package")
    parser.add_argument("--book", type=Path, help="a long plain text to hide things in; default: generated prose")
    parser.add_argument("--tasks", nargs="+", default=plan.tasks, help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--lengths", type=int, nargs="+", default=plan.lengths, help="of the texts, in tokens")
    parser.add_argument("--trials", type=int, default=plan.trials, help="questions of a figure, at least")
    parser.add_argument("--controls", nargs="*", default=plan.controls, help=f"of {', '.join(CONTROLS)}; default: all")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the weights")
    parser.add_argument("--out", type=Path, required=True, help="the figures, a JSON file; other rows in it stay")
    parser.add_argument("--figure", type=Path, help="a PNG file of all rows in it (needs matplotlib)")
    options = parser.parse_args()
    try:
        evaluate(options)
    except (ModelsError, OSError) as error:
        sys.exit(f"evaluate: {' '.join(str(error).split())}")  # torch's errors have lines
    except KeyboardInterrupt:
        print(f"Interrupted: what was measured so far is in {options.out}.", file=sys.stderr)
        sys.exit(130)


def evaluate(options: argparse.Namespace) -> None:
    """Measure as the options say; write rows as they come, and the table and the figure in the end."""
    plan = Plan(options.tasks, options.controls, sorted(set(options.lengths)), options.trials, options.seed)
    if options.figure is not None:
        check_drawing()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    results = Results(options.out, lambda text: console.print(text, markup=False))
    characters = max(_CHARACTERS, _CHARACTERS_A_TOKEN * plan.longest)
    book = prose(random.Random(plan.seed), characters) if options.book is None else read_book(options.book)
    checkpoint = load_checkpoint(
        options.model, dtype=DTYPES[options.dtype], device=options.device, say=lambda text: console.print(text)
    )
    weights = weights_of(checkpoint)
    offer = Offer(options.model, options.memory, options.options, adapter=options.adapter)
    own = memory_reader(options.memory, load_offer(checkpoint, weights, offer))
    trials = Trials(own.model.tokenizer, book, plan.seed)
    plan.check_book(len(trials.book))
    for reason in plan.left_out():
        console.print(reason, markup=False)
    evaluation, contenders = Evaluation(trials, results), Contenders(checkpoint, weights, own, plan)
    measure(evaluation, contenders, plan)
    if "kl" in plan.tasks:
        evaluation.divergence(own, contenders.base())
    Console().print(table(results.rows))
    if options.figure is not None:
        draw(results.written, options.figure)
    console.print(f"wrote {' and '.join(str(path) for path in (options.out, options.figure) if path)}", markup=False)


def measure(evaluation: Evaluation, contenders: Contenders, plan: Plan) -> None:
    """All tasks of a plan, the shortest texts first."""
    for length in plan.lengths:
        for task in TASKS:
            if task in IN_NATS or task not in plan.tasks:
                continue
            for reader in contenders.answering(length):
                if task == "passkey":
                    evaluation.passkey_by_depth(reader, length, plan.trials)
                else:
                    evaluation.questions(reader, task, length, plan.trials)
    if "nll" in plan.tasks:
        for reader, lengths in contenders.reading():
            evaluation.likelihood(reader, lengths)


if __name__ == "__main__":
    main()
