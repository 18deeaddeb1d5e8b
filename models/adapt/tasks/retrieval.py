"""Something said in a text, asked for at its end: what a pretrained model is taught to find again, in its own tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from models.adapt.tasks.base import IGNORED, Batch, check_length
from models.errors import ConfigError
from models.lessons import lesson
from models.probes import Needle, needle, needles, owner_of, passkey, passkey_haystack
from models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Hidden:
    """Sentences to hide, in this order, and the one of them that is asked for."""

    sentences: tuple[str, ...]
    asked: Needle


_WORD = re.compile(r"\b[a-z]{4,}\b")
Draw = Callable[[random.Random], Hidden]
Haystack = Callable[[random.Random, int], list[int]]
"""From a source of chance and a number: that many tokens to hide something in."""


@dataclass(frozen=True)
class Retrieval:
    """`haystack, sentence, haystack ... question, answer.`, where the answer's tokens are asked for, and the full stop behind it.

    `depth` is where the sentences stand: 0 at the beginning, 1 directly before the question, None anywhere.
    """

    name: str
    tokenizer: Tokenizer = field(repr=False)
    draw: Draw = field(repr=False)
    haystack: Haystack = field(repr=False)
    around: str = " {}"
    """How a sentence stands in the haystack."""
    depth: float | None = None

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return self.tokenizer.vocab_size

    @property
    def chance(self) -> float:
        """A guessed digit."""
        return 0.1

    @property
    def shortest(self) -> int:
        """Sentences, question and answer, with room to spare."""
        return 128

    def batch(self, generator: Generator, batch: int, length: int) -> Batch:
        """See `Task.batch`. The question ends each sequence, whatever its numbers are long."""
        check_length(self, length)
        source = random.Random(int(torch.randint(2**62, (), generator=generator)))
        tokens = torch.empty(batch, length, dtype=torch.int64)
        targets = torch.full((batch, length), IGNORED)
        [stop] = self._encode(".")
        marked, answers = torch.zeros(batch, length, dtype=torch.bool), torch.zeros(batch, length, dtype=torch.int64)
        for row in range(batch):
            read, answer, said = self._sequence(source, length)
            tokens[row] = torch.tensor(read)
            targets[row, -answer.shape[0] :] = answer
            for stretch in said:
                marked[row, stretch] = True
                answers[row, stretch] = _counted(tokens[row, stretch], answer, stop)
        return Batch(tokens, targets, marked=marked, answers=answers)

    def _sequence(self, source: random.Random, length: int) -> tuple[list[int], Tensor, list[slice]]:
        """Tokens without the answer's last one, the answer, and where the sentences stand."""
        hidden = self.draw(source)
        sentences = [self._encode(self.around.format(sentence)) for sentence in hidden.sentences]
        question, answer = self._encode("\n" + hidden.asked.question), self._encode(_whole(hidden.asked))
        room = length + 1 - len(question) - len(answer) - sum(map(len, sentences))
        if room < 1:
            raise ConfigError(f"{self.name} needs {1 - room} more tokens than {length}: give it longer sequences")
        hay, read, said, done = self.haystack(source, room), [], [], 0
        for place, sentence in zip(self._places(source, hay, len(sentences)), sentences, strict=True):
            read += [*hay[done:place], *sentence]
            said.append(slice(len(read) - len(sentence), len(read)))
            done = place
        return [*read, *hay[done:], *question, *answer[:-1]], torch.tensor(answer), said

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, start=False)

    def _places(self, source: random.Random, hay: Sequence[int], count: int) -> list[int]:
        """Behind sentences of the haystack, in order, where the depth wants them or as near as can be."""
        borders = [place for place in range(1, len(hay)) if self._ends_sentence(hay[place - 1])] or [0]
        depths = sorted(source.random() if self.depth is None else self.depth for _ in range(count))
        return [borders[round(depth * (len(borders) - 1))] for depth in depths]

    def _ends_sentence(self, token: int) -> bool:
        return self.tokenizer.token_text(token).endswith((".", "!", "?"))


def _whole(asked: Needle) -> str:
    """The answer with its full stop, if it has one: a model that is never shown where a number ends goes on with another digit."""
    return asked.answer + ("." if f"{asked.answer}." in asked.sentence else "")


def _counted(said: Tensor, answer: Tensor, stop: int) -> Tensor:
    """Of a sentence (n,), which token of the answer (m,) each is, from 1 on, wherever it has the answer; else 0: (n,) int64.

    What the sentence goes on with behind the answer stands for its full stop, the answer's last token.
    """
    places, content = torch.zeros_like(said), answer[:-1] if answer[-1] == stop else answer
    for begin in range(len(said) - len(content) + 1):
        if torch.equal(said[begin : begin + len(content)], content):
            behind = places[begin : begin + len(answer)]
            behind[:] = torch.arange(1, len(behind) + 1)
    return places


def passkey_task(tokenizer: Tokenizer, depth: float | None = None, book: Sequence[int] | None = None) -> Retrieval:
    """The passkey task of Mohtashami and Jaggi (arXiv 2305.16300), between repetitions of its filler, or in a book, where much else
    could be worth keeping."""

    def draw(source: random.Random) -> Hidden:
        key = passkey(source)
        return Hidden((key.sentence,), key)

    name, haystack = ("passkey", filler(tokenizer)) if book is None else ("passkey in a book", stretches(book))
    return Retrieval(name, tokenizer, draw, haystack, around="\n{}\n", depth=depth)


def needle_task(tokenizer: Tokenizer, book: Sequence[int], keys: int = 1) -> Retrieval:
    """RULER's needles (arXiv 2404.06654) in a book, one of several asked for."""

    def draw(source: random.Random) -> Hidden:
        drawn = needles(source, keys)
        return Hidden(tuple(one.sentence for one in drawn), source.choice(drawn))

    return Retrieval("needle" if keys == 1 else f"{keys} needles", tokenizer, draw, stretches(book))


def rewrite_task(tokenizer: Tokenizer, book: Sequence[int], times: int = 2) -> Retrieval:
    """A needle that is said again with other numbers: the newest counts."""

    def draw(source: random.Random) -> Hidden:
        name = owner_of(needle(source))
        drawn = [needle(source, name) for _ in range(times)]
        return Hidden(tuple(one.sentence for one in drawn), drawn[-1])

    return Retrieval("rewrite", tokenizer, draw, stretches(book))


def fact_task(tokenizer: Tokenizer, book: Sequence[int]) -> Retrieval:
    """A fact in plain words in a book, in one of many wordings, or now and then a needle (`models/lessons.py`)."""

    def draw(source: random.Random) -> Hidden:
        one = lesson(source)
        return Hidden((one.sentence,), one)

    return Retrieval("fact", tokenizer, draw, stretches(book))


def copy_task(tokenizer: Tokenizer, book: Sequence[int], words: int = 12) -> Retrieval:
    """A list of the book's words, in no order that could be guessed, to be said again."""
    known = sorted(set(_WORD.findall(tokenizer.decode(book))))

    def draw(source: random.Random) -> Hidden:
        if len(known) < words:
            raise ConfigError(f"the book has {len(known)} words, and {words} are needed: give a longer one")
        listed, cue = " " + ", ".join(source.sample(known, words)), "The words to keep in mind are:"
        return Hidden((f"{cue}{listed}.",), Needle(f"{cue}{listed}.", cue, listed))

    return Retrieval("copy", tokenizer, draw, stretches(book))


def filler(tokenizer: Tokenizer) -> Haystack:
    """Repetitions of what passkeys are hidden in, the same for every draw."""
    longest: list[int] = []

    def begin(_: random.Random, count: int) -> list[int]:
        repeats = 32
        while len(longest) < count:
            longest[:] = tokenizer.encode(passkey_haystack(repeats), start=False)
            repeats *= 2
        return longest[:count]

    return begin


def halves(one: Haystack, other: Haystack) -> Haystack:
    """Of each haystack one half, in an order that is drawn."""

    def both(source: random.Random, count: int) -> list[int]:
        first, second = (one, other) if source.random() < 0.5 else (other, one)
        return [*first(source, count // 2), *second(source, count - count // 2)]

    return both


def stretches(book: Sequence[int]) -> Haystack:
    """Stretches of an encoded text from anywhere in it. What is drawn raises `ConfigError` when the text is too short."""

    def stretch(source: random.Random, count: int) -> list[int]:
        if count > len(book):
            raise ConfigError(f"the book has {len(book)} tokens, and {count} are needed: give a longer one")
        begin = source.randrange(len(book) - count + 1)
        return list(book[begin : begin + count])

    return stretch
