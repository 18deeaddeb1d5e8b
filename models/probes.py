"""Text with something to remember in it, made from a seed: haystacks, needles, passkeys and facts in plain words.

Pure Python. Used to calibrate retrieval heads, by the benchmarks and by the demo.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

_PASSKEY_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_PASSKEY_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_SENTENCE_END = re.compile(r'(?<=[.!?])["\']?\s+')

_NAMES = (
    "Abel Agnes Alma Amos Beatrix Boris Cassia Clement Cora Cyril Delia Dorian Edith Elias Esther Felix Fiona Gideon Greta "
    "Hector Hilda Ida Ignatius Iris Jasper Judith Konrad Leona Linus Lydia Magnus Mabel Mira Nestor Nora Octavia Oscar Petra "
    "Quentin Rhoda Rufus Sabina Silas Thea Tobias Ursula Viola Walter Winifred Xenia Yorick Zelda"
).split()
_PLACES = (
    "Ashford Bristol Calais Derby Exeter Florence Geneva Hamburg Ipswich Kendal Lisbon Madrid Norwich Oxford Paris "
    "Ravenna Salisbury Turin Utrecht Venice Warwick York Zurich Dublin Edinburgh"
).split()
_TRADES = (
    "baker miller tailor painter doctor lawyer sailor gardener teacher carpenter printer weaver banker soldier priest "
    "blacksmith fisherman shepherd musician merchant"
).split()
_ANIMALS = "dog cat horse goat parrot rabbit donkey goose pony hen raven pig sheep duck".split()
_COLOURS = "red green blue yellow black white brown grey purple orange".split()
_INSTRUMENTS = "violin flute harp piano drum trumpet guitar cello organ fiddle".split()
_MONTHS = "January February March April May June July August September October November December".split()
_FOODS = "cheese bread soup honey apples pears fish rice cake butter onions cherries plums".split()
_METALS = "gold silver copper iron bronze tin brass lead".split()
_PLANTS = "roses lilies tulips ivy ferns violets daisies poppies thistles lavender".split()


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, and a text that a model which remembers goes on from with `answer`."""

    sentence: str
    question: str
    answer: str


@dataclass(frozen=True)
class Template:
    """A fact in plain words: `{name}` is somebody, `{value}` one word of `values`; `cue` ends where the value follows."""

    sentence: str
    cue: str
    values: Sequence[str]


FACTS: tuple[Template, ...] = (
    Template("{name} was born in {value}.", "{name} was born in", _PLACES),
    Template("{name} works as a {value}.", "{name} works as a", _TRADES),
    Template("The favourite colour of {name} is {value}.", "The favourite colour of {name} is", _COLOURS),
    Template("{name} plays the {value} every evening.", "{name} plays the", _INSTRUMENTS),
    Template("The birthday of {name} is in {value}.", "The birthday of {name} is in", _MONTHS),
    Template("{name} keeps a {value} in the yard.", "{name} keeps a", _ANIMALS),
    Template("For breakfast {name} always eats {value}.", "For breakfast {name} always eats", _FOODS),
    Template("The ring of {name} is made of {value}.", "The ring of {name} is made of", _METALS),
    Template("{name} grows {value} in the garden.", "{name} grows", _PLANTS),
    Template("{name} went to school in {value}.", "{name} went to school in", _PLACES),
    Template("The coat of {name} is {value}.", "The coat of {name} is", _COLOURS),
    Template("The father of {name} was a {value}.", "The father of {name} was a", _TRADES),
    Template("{name} was married in {value}.", "{name} was married in", _PLACES),
    Template("{name} is afraid of every {value}.", "{name} is afraid of every", _ANIMALS),
)
"""Facts in natural wording. The value is a plain word that nothing around it suggests."""


def needle(source: random.Random, name: str | None = None) -> Needle:
    """RULER's needle (arXiv 2404.06654): a seven-digit number under a name."""
    owner = name or source.choice(_NAMES)
    number = str(source.randrange(10**6, 10**7))
    cue = f"One of the special magic numbers for {owner} is:"
    return Needle(f"{cue} {number}.", cue, f" {number}")


def owner_of(one: Needle) -> str:
    """Whose number a seven-digit needle is."""
    return one.question.removesuffix(" is:").rsplit(" ", 1)[-1]


def fact(source: random.Random, template: Template | None = None, name: str | None = None) -> Needle:
    """A fact in natural wording."""
    chosen = template or source.choice(FACTS)
    owner, value = name or source.choice(_NAMES), source.choice(list(chosen.values))
    return Needle(chosen.sentence.format(name=owner, value=value), chosen.cue.format(name=owner), f" {value}")


def needles(source: random.Random, count: int) -> list[Needle]:
    """Seven-digit needles under different names."""
    return [needle(source, name) for name in source.sample(_NAMES, count)]


def numbers(source: random.Random) -> tuple[list[Needle], Needle]:
    """RULER's multi-value needle: four numbers of one person, and a needle of all of them, whose question asks for a list.

    A model may list them in any order.
    """
    owner = source.choice(_NAMES)
    said = [needle(source, owner) for _ in range(4)]
    # Told how many there are, the default model lists them; asked for "the special magic numbers" it says one and stops.
    cue = f"The four special magic numbers for {owner} are:"
    listed = ",".join(one.answer for one in said)
    return said, Needle(f"{cue}{listed}.", cue, listed)


def passkey(source: random.Random) -> Needle:
    """The passkey task (arXiv 2305.16300): a number of up to five digits, said twice in its sentence."""
    key = source.randrange(1, 50_001)
    sentence = f"The pass key is {key}. Remember it. {key} is the pass key."
    return Needle(sentence, "What is the pass key? The pass key is", f" {key}")


def aside(source: random.Random) -> str:
    """A sentence with a number that is nobody's answer: a date, an age, a sum, a count."""
    name, place, month = source.choice(_NAMES), source.choice(_PLACES), source.choice(_MONTHS)
    day, year = source.randrange(1, 29), source.randrange(1650, 1900)
    few, many = source.randrange(13, 99), source.randrange(101, 50_001)
    return source.choice(
        (
            f"{name}, born {month} {day}, {year}; died {month} {day}, {year + few}.",
            f"It was on the {day}th of {month} {year}, or so {name} always said.",
            f"{name} was {few} that year, and had {many} pounds a year.",
            f"The house in {place} was sold for {many} pounds in {year}.",
            f"There were {many} volumes in the library at {place}, and number {many - few} was lost.",
            f"From {place} it is {few} miles, {few + 40} by the coast.",
        )
    )


def with_asides(text: str, source: random.Random, every: int) -> str:
    """`text` with an aside about every so many characters, between sentences."""
    count = len(text) // every
    return plant(text, [aside(source) for _ in range(count)], [source.random() for _ in range(count)])


def passkey_haystack(repeats: int) -> str:
    """The task's introduction and `repeats` repetitions of its filler; the sentence goes between two of them."""
    return f"{_PASSKEY_TASK}\n" + " ".join([_PASSKEY_FILLER] * repeats)


def plant(text: str, sentences: Sequence[str], depths: Sequence[float]) -> str:
    """Insert sentences between those of `text`, each at the first border behind its depth in [0, 1] of the text."""
    borders = [match.end() for match in _SENTENCE_END.finditer(text)] or [len(text)]
    planted, end = [], len(text)
    for depth, sentence in sorted(zip(depths, sentences, strict=True), reverse=True):
        place = next((border for border in borders if border >= depth * len(text)), len(text))
        place = min(place, end)
        planted += [text[place:end], sentence + " "]
        end = place
    return "".join(reversed([*planted, text[:end]]))


def prose(source: random.Random, characters: int) -> str:
    """A plain narrative of about so many characters, in paragraphs. Without numbers."""
    paragraphs: list[str] = []
    length = 0
    while length < characters:
        paragraph = " ".join(_sentence(source) for _ in range(source.randrange(3, 8)))
        paragraphs.append(paragraph)
        length += len(paragraph) + 2
    return "\n\n".join(paragraphs)[:characters].rsplit(".", 1)[0] + ".\n"


_OPENINGS = (
    "In the morning", "Late that evening", "After the rain", "Before anyone could object", "On the way to {place}", "At last",
    "Some weeks later", "Without a word", "As the lamps were lit", "When the carriage stopped", "Toward the end of the summer",
    "For the first time in years", "Between two letters", "To the surprise of all", "While the others slept",
)  # fmt: skip
_WHO = (
    "the old captain", "her younger sister", "a traveller from {place}", "the housekeeper", "the schoolmaster", "their neighbour",
    "the widow", "a quiet stranger", "the eldest son", "the governess", "the innkeeper", "her uncle", "the clerk", "the surgeon",
)  # fmt: skip
_DID = (
    "spoke of the harbour and its ships", "refused to believe the news", "walked along the river", "sat down by the window",
    "remembered the house in {place}", "folded the letter and said nothing", "asked for a cup of tea", "praised the music",
    "closed the gate with care", "looked for the missing key", "told the story of the flood", "counted the steps to the tower",
    "waited for the post from {place}", "admired the garden behind the church", "lost all patience with the cook",
    "opened the shutters one by one", "thought of nothing but the journey", "blamed the weather for everything",
)  # fmt: skip
_LINKS = (
    "because nobody else would", "though the road was bad", "and the room grew silent", "as if it were a secret",
    "while the fire burned low", "until the clock struck again", "with more pride than sense", "for reasons of {place} fashion",
    "so that the children laughed", "which pleased the company", "but it was already too late", "and that was the end of it",
)  # fmt: skip


def _sentence(source: random.Random) -> str:
    parts = [source.choice(_WHO), source.choice(_DID)]
    if source.random() < 0.6:
        parts.append(source.choice(_LINKS))
    text = " ".join(parts)
    if source.random() < 0.5:
        text = f"{source.choice(_OPENINGS)}, {text}"
    if source.random() < 0.25:
        text = f"{text}; {source.choice(_WHO)} {source.choice(_DID)}"
    text = re.sub(r"\{place\}", lambda _: source.choice(_PLACES), text)
    return text[0].upper() + text[1:] + "."
