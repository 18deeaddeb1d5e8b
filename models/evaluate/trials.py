"""Things hidden in a text, and whether a reader finds them.

Trials that share a haystack share its reading: the state is forked where the needle goes in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from models.errors import ModelsError
from models.evaluate.reading import Reader
from models.probes import FACTS, Needle, fact, needle, needles, numbers, owner_of, passkey, passkey_haystack
from models.state import MemoryState
from models.tokenizer import Tokenizer

_AROUND = {"passkey": "\n{}\n", "needle": " {}"}
"""How a sentence stands in its haystack: the passkey's on a line of its own."""
TAIL = 600
"""Tokens at the end of the book's part in which nothing is hidden; the ring may still hold up to 768."""
_SEEDS = 1_000_003
"""Between the numbers that two seeds begin with."""


Drawn = tuple[Sequence[Needle], Sequence[Needle]]
"""What is hidden in a text, in this order, and what of it is asked for."""


@dataclass(frozen=True)
class Trial:
    """A needle that goes into a haystack behind `place` tokens."""

    needle: Needle
    place: int


class Trials:
    """Trials over one book. Every method returns what each trial scored, 0 to 1."""

    def __init__(self, tokenizer: Tokenizer, book: str, seed: int = 0) -> None:
        self.tokenizer, self._seed = tokenizer, seed
        self.book = tokenizer.encode(book)

    def questions(self, reader: Reader, task: str, length: int, trials: int) -> list[float]:
        """At least so many questions of a task that hides things in the book: as many whole rounds as that takes."""
        if task == "needle":
            return self.needles(reader, length, trials, max(1, trials // 5))
        rounds, asked = {
            "multikey": (self.multikey, 4),
            "multivalue": (self.multivalue, 1),
            "rewrite": (self.rewrite, 4),
            "facts": (self.facts, len(FACTS)),
        }[task]
        return rounds(reader, length, -(-trials // asked))

    def passkey(self, reader: Reader, length: int, trials: int, depth: float | None = None) -> list[float]:
        """Trials at even depths of a filler of `length` tokens, or all at one depth; the whole number has to be right."""
        depths = [index / max(1, trials - 1) if depth is None else depth for index in range(trials)]
        return self._in_filler(reader, length, zip(self._keys(length, trials), depths, strict=True))

    def passkeys(self, reader: Reader, length: int, trials: int, depths: Sequence[float]) -> list[list[float]]:
        """What the trials of `passkey` score at each of these depths, shallowest first; the filler is read once for all of them."""
        keys = self._keys(length, trials)
        right = self._in_filler(reader, length, ((key, depth) for depth in depths for key in keys))
        return [right[begin : begin + trials] for begin in range(0, len(right), trials)]

    def _keys(self, length: int, trials: int) -> list[Needle]:
        source = self._source(length)
        return [passkey(source) for _ in range(trials)]

    def _in_filler(self, reader: Reader, length: int, hidden: Iterable[tuple[Needle, float]]) -> list[float]:
        """Passkeys, each with its depth in a filler of `length` tokens."""
        one, two = (len(self.tokenizer.encode(passkey_haystack(repeats))) for repeats in (1, 2))
        hay = self.tokenizer.encode(passkey_haystack(length // (two - one)))
        borders = [place for place in range(one, len(hay) + 1) if (place - one) % (two - one) == 0]
        planted = [Trial(key, borders[round(depth * (len(borders) - 1))]) for key, depth in hidden]
        return self._find(reader, "passkey", hay, planted)

    def fading(self, reader: Reader, lengths: Sequence[int], trials: int) -> dict[int, list[float]]:
        """A passkey behind the first sentence of a part of the book, asked for after ever more of it.

        What each trial scored, by length, shortest first. Raises `ModelsError` where the book is shorter than the longest.
        """
        source, longest = self._source(4000), max(lengths)
        if len(self.book) < longest:
            raise ModelsError(f"the book has {len(self.book):,} tokens, and {longest:,} are wanted; name a longer one")
        asked: dict[int, list[float]] = {length: [] for length in sorted(lengths)}
        for _ in range(trials):
            begin = source.randrange(len(self.book) - longest + 1)
            hay, hidden = self.book[begin : begin + longest], passkey(source)
            read = self._borders(hay)[0]
            sentence = self.tokenizer.encode(_AROUND["passkey"].format(hidden.sentence), start=False)
            state = reader.read(reader.empty(), [*hay[:read], *sentence])
            for length, right in asked.items():
                state = reader.read(state, hay[read:length])
                read = max(read, length)
                right.append(self._ask("passkey", reader, state, hidden))
        return asked

    def needles(self, reader: Reader, length: int, trials: int, haystacks: int) -> list[float]:
        """Seven digits in the book, at even depths; the share of digits in their places."""
        source, right = self._source(length + 1), []
        hidden = [needle(source) for _ in range(trials)]
        for number in range(haystacks):
            begin = source.randrange(max(1, len(self.book) - length))
            hay = self.book[begin : begin + length]
            borders = self._borders(hay)
            among = hidden[number * trials // haystacks : (number + 1) * trials // haystacks]
            planted = [
                Trial(one, borders[round((index + 0.5) / len(among) * (len(borders) - 1))])
                for index, one in enumerate(among)
            ]
            right += self._find(reader, "needle", hay, planted)
        return right

    def facts(self, reader: Reader, length: int, rounds: int) -> list[float]:
        """Every template once a round, all in one part of the book, each asked by itself.

        The facts of a round are the same at every length, in the same order: what one reader gets right at one length can be
        compared with what another does at a greater one.
        """

        def draw(source: random.Random) -> Drawn:
            hidden = [fact(source, template) for template in FACTS]
            source.shuffle(hidden)
            return hidden, hidden

        return self._rounds(reader, "facts", length, range(rounds), draw)

    def multikey(self, reader: Reader, length: int, rounds: int) -> list[float]:
        """Four seven-digit needles of different people in one part of the book, each asked for; the whole number."""

        def draw(source: random.Random) -> Drawn:
            hidden = needles(source, 4)
            return hidden, hidden

        return self._rounds(reader, "multikey", length, range(1000, 1000 + rounds), draw)

    def multivalue(self, reader: Reader, length: int, rounds: int) -> list[float]:
        """Four numbers of one person in one part of the book, asked for once; the share of them in the answer."""

        def draw(source: random.Random) -> Drawn:
            said, asked = numbers(source)
            return said, [asked]

        return self._rounds(reader, "multivalue", length, range(3000, 3000 + rounds), draw)

    def rewrite(self, reader: Reader, length: int, rounds: int) -> list[float]:
        """Four needles, and later the same four people's with other numbers: the newest counts, the whole of it."""

        def draw(source: random.Random) -> Drawn:
            first = needles(source, 4)
            newest = [needle(source, owner_of(one)) for one in first]
            return [*first, *newest], newest

        return self._rounds(reader, "rewrite", length, range(2000, 2000 + rounds), draw)

    def _rounds(
        self, reader: Reader, task: str, length: int, seeds: Iterable[int], draw: Callable[[random.Random], Drawn]
    ) -> list[float]:
        """A round for each seed."""
        right = []
        for seed in seeds:
            source = self._source(seed)
            hidden, asked = draw(source)
            right += self._hidden_together(reader, task, length, hidden, asked, source)
        return right

    def _hidden_together(
        self,
        reader: Reader,
        task: str,
        length: int,
        hidden: Sequence[Needle],
        asked: Sequence[Needle],
        source: random.Random,
    ) -> list[float]:
        """All of `hidden` at even depths of one part of the book; what is `asked` of them, one after the other."""
        begin = source.randrange(max(1, len(self.book) - length))
        hay = self.book[begin : begin + length]
        borders = self._borders(hay)
        tokens: list[int] = []
        done = 0
        for index, one in enumerate(hidden):
            place = borders[round((index + 0.5) / len(hidden) * (len(borders) - 1))]
            tokens += [*hay[done:place], *self.tokenizer.encode(" " + one.sentence, start=False)]
            done = place
        state = reader.read(reader.empty(), [*tokens, *hay[done:]])
        return [self._ask(task, reader, state, one) for one in asked]

    def _find(self, reader: Reader, task: str, hay: Sequence[int], trials: Iterable[Trial]) -> list[float]:
        state, read, right = reader.empty(), 0, []
        for trial in sorted(trials, key=lambda trial: trial.place):
            state = reader.read(state, hay[read : trial.place])
            read = trial.place
            sentence = self.tokenizer.encode(_AROUND[task].format(trial.needle.sentence), start=False)
            planted = reader.read(state.clone(), [*sentence, *hay[read:]])
            right.append(self._ask(task, reader, planted, trial.needle))
        return right

    def _ask(self, task: str, reader: Reader, state: MemoryState, hidden: Needle) -> float:
        question = self.tokenizer.encode("\n" + hidden.question, start=False)
        wanted = self.tokenizer.encode(hidden.answer, start=False)
        count = len(wanted) * 3 // 2 if task == "multivalue" else len(wanted)
        got = reader.answer(state, question, count)
        return _score(task, self.tokenizer.decode(wanted), self.tokenizer.decode(got))

    def _borders(self, hay: Sequence[int]) -> list[int]:
        """Places behind a sentence, not in the tail. Raises `ModelsError` when there is none."""
        borders = [place for place in range(1, len(hay) - TAIL) if self._ends_sentence(hay, place)]
        if not borders:
            raise ModelsError(f"no sentence of the book ends where one was to be hidden, within {len(hay):,} tokens")
        return borders

    def _ends_sentence(self, tokens: Sequence[int], place: int) -> bool:
        return self.tokenizer.token_text(tokens[place - 1]).endswith((".", "!", "?"))

    def _source(self, number: int) -> random.Random:
        return random.Random(number + self._seed * _SEEDS)


def _score(task: str, wanted: str, got: str) -> float:
    """Digits in their places for needles, numbers in any for multivalue, everything or nothing for the rest."""
    if task == "multivalue":
        hidden = re.findall(r"\d+", wanted)
        return sum(number in re.findall(r"\d+", got) for number in hidden) / len(hidden)
    if task == "needle":
        pairs = list(zip(wanted.strip(), got.strip().ljust(len(wanted)), strict=False))
        return sum(a == b for a, b in pairs) / len(pairs)
    return float(wanted.strip() == got.strip())
