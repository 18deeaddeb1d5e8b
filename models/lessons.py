"""Facts that memories are calibrated and taught on: other people, wordings and values than those they are judged by.

`models.probes.FACTS` stays for the figures alone. Many wordings, so that what is learned is what a fact looks like and not how
one sentence reads.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from models.probes import Needle, Template, needle

_NAMES = (
    "Albert Barbara Charles Daphne Edmund Frances Gregory Harriet Isaac Julia Kenneth Louisa Martin Nancy Oliver Pauline Ralph "
    "Sarah Theodore Vera William Arthur Bridget Cecil Dora Ernest Flora Gilbert Helen Ivan Joan Leonard Margaret Neville Olga "
    "Patrick Rosa Stephen Teresa Victor Wanda Herbert Matilda Roland Sylvia Bertram Celia"
).split()
_FAMILIES = (
    "Bakewell Crompton Dunmore Eastlake Fairbank Grimsby Holloway Inglewood Jarvis Kettering Lockhart Marchbanks Northcote "
    "Oldfield Pemberton Quillford Ransome Stapleford Thornbury Underhill Vickers Whitmore"
).split()
_CITIES = (
    "London Vienna Prague Moscow Boston Chicago Rome Naples Milan Berlin Dresden Lyon Marseille Brussels Antwerp Glasgow "
    "Cardiff Leeds Durham Lincoln Athens Cairo Tunis Lima Havana Tokyo Delhi"
).split()
_COLOURS = "turquoise pink scarlet violet golden silver crimson ivory orange grey".split()
_TRADES = (
    "architect chemist pilot nurse judge barber butcher tanner cook engineer librarian clockmaker farmer poet dentist "
    "historian porter miner jeweller"
).split()
_ANIMALS = "swan fox wolf tiger camel monkey turtle owl falcon otter beaver spider squirrel mouse crow eagle".split()
_FOODS = (
    "eggs figs dates oysters mutton turnips almonds porridge lemons mushrooms beans peaches grapes cabbage ham".split()
)
_NUMBERS = "three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_STUFFS = "wood glass stone leather silk paper wool clay wax velvet marble".split()
_SUBJECTS = "chemistry history algebra law botany music geography Latin Greek astronomy physics painting".split()
_ILLNESSES = "fever gout asthma measles cholera toothache rheumatism influenza".split()
_GAMES = "chess whist cricket tennis billiards dominoes backgammon croquet".split()
_LANGUAGES = "German Spanish Russian Italian Turkish Arabic Dutch Polish Danish Swedish Hebrew Chinese".split()
_DRINKS = "coffee brandy milk cider rum lemonade beer cocoa wine whisky".split()
_THINGS = (
    "a lamp",
    "a ladder",
    "a pistol",
    "a clock",
    "a mirror",
    "a saddle",
    "a basket",
    "a candle",
    "an umbrella",
    "a telescope",
    "a kettle",
    "a hammer",
    "a blanket",
    "a map",
)

LESSONS: tuple[Template, ...] = (
    Template("{name} lives in {value}.", "{name} lives in", _CITIES),
    Template("{name} moved to {value} last year.", "{name} moved to", _CITIES),
    Template("The house of {name} stands near {value}.", "The house of {name} stands near", _CITIES),
    Template("The mother of {name} came from {value}.", "The mother of {name} came from", _CITIES),
    Template("{name} learned to swim in {value}.", "{name} learned to swim in", _CITIES),
    Template("{name} died in {value}.", "{name} died in", _CITIES),
    Template("The ship of {name} sails to {value}.", "The ship of {name} sails to", _CITIES),
    Template("{name} spent the winter in {value}.", "{name} spent the winter in", _CITIES),
    Template("{name} has a brother who is a {value}.", "{name} has a brother who is a", _TRADES),
    Template("{name} wants to become a {value}.", "{name} wants to become a", _TRADES),
    Template("The cousin of {name} was a {value} in the war.", "The cousin of {name} was a", _TRADES),
    Template("{name} drives a {value} carriage.", "{name} drives a", _COLOURS),
    Template("{name} wears a {value} hat.", "{name} wears a", _COLOURS),
    Template("The door of {name} is painted {value}.", "The door of {name} is painted", _COLOURS),
    Template("{name} carries a {value} umbrella.", "{name} carries a", _COLOURS),
    Template("{name} studies {value} at the university.", "{name} studies", _SUBJECTS),
    Template("{name} teaches {value} to the children.", "{name} teaches", _SUBJECTS),
    Template("{name} speaks {value} fluently.", "{name} speaks", _LANGUAGES),
    Template("{name} drinks {value} after dinner.", "{name} drinks", _DRINKS),
    Template("{name} prefers {value} to everything else.", "{name} prefers", _DRINKS),
    Template("{name} is allergic to {value}.", "{name} is allergic to", _FOODS),
    Template("{name} hates {value}.", "{name} hates", _FOODS),
    Template("The uncle of {name} sells {value}.", "The uncle of {name} sells", _FOODS),
    Template("{name} has {value} children.", "{name} has", _NUMBERS),
    Template("{name} owns {value} horses.", "{name} owns", _NUMBERS),
    Template("{name} paid {value} pounds for the painting.", "{name} paid", _NUMBERS),
    Template("{name} is {value} years old.", "{name} is", _NUMBERS),
    Template("{name} bought {value} at the market.", "{name} bought", _THINGS),
    Template("{name} left {value} in the church.", "{name} left", _THINGS),
    Template("{name} hid the key under {value}.", "{name} hid the key under", _THINGS),
    Template("{name} broke {value} on the stairs.", "{name} broke", _THINGS),
    Template("{name} suffers from {value}.", "{name} suffers from", _ILLNESSES),
    Template("{name} plays {value} with the neighbours.", "{name} plays", _GAMES),
    Template("{name} was once bitten by a {value}.", "{name} was once bitten by a", _ANIMALS),
    Template("{name} dreamed of a {value}.", "{name} dreamed of a", _ANIMALS),
    Template(
        "In the park of {name} stands a statue of a {value}.", "In the park of {name} stands a statue of a", _ANIMALS
    ),
    Template("The meeting with {name} is on {value}.", "The meeting with {name} is on", _DAYS),
    Template("{name} arrives every {value}.", "{name} arrives every", _DAYS),
    Template("{name} will travel in {value}.", "{name} will travel in", _MONTHS),
    Template("The boots of {name} are made of {value}.", "The boots of {name} are made of", _STUFFS),
    Template("{name} collects boxes of {value}.", "{name} collects boxes of", _STUFFS),
    Template("The wife of {name} is called {value}.", "The wife of {name} is called", _NAMES),
    Template("The best friend of {name} is {value}.", "The best friend of {name} is", _NAMES),
    Template("{name} borrowed money from {value}.", "{name} borrowed money from", _NAMES),
    Template("{name} gave the letter to {value}.", "{name} gave the letter to", _NAMES),
    Template("The surname of {name} is {value}.", "The surname of {name} is", _FAMILIES),
    Template("{name} works for Mr. {value}.", "{name} works for Mr.", _FAMILIES),
    Template("{name} lives in {value}.", "Question: Where does {name} live? Answer:", _CITIES),
    Template("{name} studies {value} at the university.", "Question: What does {name} study? Answer:", _SUBJECTS),
    Template("{name} has {value} children.", "Question: How many children does {name} have? Answer:", _NUMBERS),
    Template("{name} wears a {value} hat.", "Question: What colour is the hat of {name}? Answer:", _COLOURS),
    Template("{name} left {value} in the church.", "Question: What did {name} leave in the church? Answer:", _THINGS),
    Template("The wife of {name} is called {value}.", "Question: What is the wife of {name} called? Answer:", _NAMES),
    Template("{name} wants to become a {value}.", "Question: What does {name} want to become? Answer:", _TRADES),
)
"""Facts in natural wording, asked for by the beginning of their sentence or by a question."""

_NEEDLES = 0.12
"""The share of seven-digit needles among lessons: numbers and names use overlapping, not equal, heads."""


def lesson(source: random.Random, taken: Collection[str] = ()) -> Needle:
    """A fact, or now and then a needle, of somebody who is not among those `taken`."""
    owner = source.choice([name for name in _NAMES if name not in taken])
    if source.random() < _NEEDLES:
        return needle(source, owner)
    chosen = source.choice(LESSONS)
    value = source.choice([value for value in chosen.values if value != owner])
    return Needle(chosen.sentence.format(name=owner, value=value), chosen.cue.format(name=owner), f" {value}")


def lessons(source: random.Random, count: int, numbers: int = 0) -> list[Needle]:
    """Lessons of different people, the last `numbers` of them seven-digit needles beside `count` others."""
    people = source.sample(_NAMES, count + numbers)
    taught = [lesson(source, set(_NAMES) - {name}) for name in people[:count]]
    return taught + [needle(source, name) for name in people[count:]]
