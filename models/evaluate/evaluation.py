"""Tasks put to readers, and a row for every figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from models.evaluate.reading import Reader
from models.evaluate.results import Result, Results
from models.evaluate.trials import Trials

DEPTHS = {"start": 0.0, "middle": 0.5, "end": 1.0}
SHORT = 256
"""Tokens of a short text: nothing has left the ring of any window yet."""
PLACES = 8
"""Short texts, from all over the book."""
FIRST_BIN = 512
"""Tokens of the first bin of positions; every other reaches twice as far as the one before it."""


class Evaluation:
    """Measures, and writes down every figure as it comes."""

    def __init__(self, trials: Trials, results: Results) -> None:
        self.trials, self.results = trials, results

    def passkey_by_depth(self, reader: Reader, length: int, trials: int, depths: Sequence[str] = tuple(DEPTHS)) -> None:
        """At the start, in the middle and at the end, or at some of these, shallowest first; so many trials each."""
        found = self.trials.passkeys(reader, length, trials, [DEPTHS[depth] for depth in depths])
        for depth, right in zip(depths, found, strict=True):
            self.note(reader, "passkey", length, right, depth)

    def passkey(self, reader: Reader, length: int, trials: int) -> None:
        """At even depths."""
        self.note(reader, "passkey", length, self.trials.passkey(reader, length, trials), "spread")

    def questions(self, reader: Reader, task: str, length: int, trials: int) -> None:
        """See `Trials.questions`."""
        self.note(reader, task, length, self.trials.questions(reader, task, length, trials))

    def likelihood(self, reader: Reader, lengths: Sequence[int]) -> None:
        """Nats a token of the book: of its first tokens up to each length, and of the longest by position."""
        losses = reader.losses(self.trials.book[: max(lengths)]).tolist()
        for length in lengths:
            self.note(reader, "nll", length, between(losses, 0, length), "whole")
        for begin, end in bins(max(lengths)):
            self.note(reader, "nll", max(lengths), between(losses, begin, end), f"{begin}-{end}")

    def divergence(self, reader: Reader, base: Reader) -> None:
        """What short texts cost `reader` and `base`, and KL(base || reader), nats a token by which the one has left the other."""
        last = len(self.trials.book) - SHORT - 1
        ours, theirs, apart = [], [], []
        for place in range(PLACES):
            begin = round((place + 0.5) / PLACES * last)
            tokens = self.trials.book[begin : begin + SHORT + 1]
            wanted = torch.tensor(tokens[1:])[:, None]
            own, first = (one.log_probabilities(tokens).cpu() for one in (reader, base))
            ours += own.gather(1, wanted).neg().flatten().tolist()
            theirs += first.gather(1, wanted).neg().flatten().tolist()
            apart += torch.nn.functional.kl_div(own, first, reduction="none", log_target=True).sum(dim=1).tolist()
        self.note(reader, "kl", SHORT, apart, "short")
        self.note(reader, "nll", SHORT, ours, "short")
        self.note(base, "nll", SHORT, theirs, "short")

    def note(self, reader: Reader, task: str, length: int, figures: Sequence[float], depth: str = "spread") -> None:
        """Add the mean of what was measured."""
        self.add(mean(reader, task, length, figures, depth))

    def add(self, result: Result) -> None:
        """Add a row."""
        self.results.add(result)


def mean(reader: Reader, task: str, length: int, figures: Sequence[float], depth: str = "spread") -> Result:
    """The row of what was measured."""
    average = round(sum(figures) / len(figures), 4)
    return Result(reader.name, task, length, depth, len(figures), average, reader.state_bytes)


def bins(length: int) -> Iterator[tuple[int, int]]:
    """Positions [begin, end) that are judged together: 0-512, 512-1024, 1024-2048, … The last ends with the text."""
    begin, end = 0, FIRST_BIN
    while begin < length:
        yield begin, min(end, length)
        begin, end = end, 2 * end


def between(losses: Sequence[float], begin: int, end: int) -> Sequence[float]:
    """Losses of the tokens at positions [begin, end), of `losses` that begin with the second token's."""
    return losses[max(begin, 1) - 1 : end - 1]
